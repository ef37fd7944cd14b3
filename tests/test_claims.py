"""Every measured number of README and docs/ names the file and the field that it comes from, and still equals it.

The source stands in a comment after the paragraph, list item or table that holds the number:

    It ends 0.051 nats behind its baseline.
    <!-- claim: 0.051 = results/x/table.json rows[name=cocomix].difference -->

Several are separated by semicolons; NUMBERS may be several, with spaces between them. The forms are

    NUMBERS = FILE.json FIELD       keys, [index] and [key=value]; FIELD - FIELD and FIELD / FIELD are computed
    NUMBERS = FILE "words"          the numbers stand in these words of a text file
    NUMBERS = cocomix.module NAME   a constant of the package, or a field's default
    NUMBERS = paper WHERE           the paper's own numbers; the text says that they are the paper's
    all = tests/test_x.py WHAT      another test recomputes the whole paragraph or table

Tables between `<!-- table: … -->` and `<!-- end -->` are written from files: tests/test_results.py. Code, also in
backticks, shows settings; so do numbers with neither a unit nor decimals. Neither is looked at.
"""

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.documents import DOCS, ROOT

_UNIT = r"%|×(?!\s*\d)|nats|times|tokens/s|[kMG]i?B|ms|s|seconds?|minutes?|hours?|days?|bits|[GT]?FLOPS?"
_NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
_MEASURED = re.compile(
    rf"(?<![\w.,])(?:({_NUMBER})\s?(?:{_UNIT})(?!\w)|(?:±\s?|\bp = )({_NUMBER})|(\d[\d,]*\.\d+(?:e-?\d+)?)(?!\w|\.\d))"
)
"""A number with a unit, a spread, a p-value, or anything with decimals."""
_NO_MEASUREMENT = re.compile(
    r"\b(?:Python|PyTorch|transformers|accelerate|PEFT|TRL|torchao|Eq\.|Gemma|Qwen ?2?,?|Llama-|arXiv) ?\(?\d[\d.]*"
    r"|\d+\.\d+\.\d+|95% (?:t-)?intervals?"
)
"""Versions, equations and names, and the intervals that we always show."""
_CLAIM = re.compile(r"<!-- claim: (.*?) -->", re.DOTALL)
_SCALES = {"": 1.0, "%": 100.0, "k": 1e-3, "M": 1e-6, "T": 1e-12}


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, list item, table or heading, and the claims after it."""

    page: Path
    text: str
    claims: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text[:50]!r}"


def paragraphs(page: Path, text: str) -> Iterator[Paragraph]:
    """What a page says, without code and generated tables."""
    claims = _CLAIM.findall(text)
    text = _CLAIM.sub("\n\n<claim>\n\n", text)
    text = re.sub(r"<!-- table: .*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|\bhttps?://\S+", " ", text)
    last: Paragraph | None = None
    for part in re.split(r"\n\s*\n|\n(?= *(?:[-*]|\d+\.) )", text):
        if part.strip() == "<claim>":
            assert last is not None
            last = Paragraph(page, last.text, tuple(" ".join(each.split()) for each in claims.pop(0).split(";")))
        elif part.strip():
            if last is not None:
                yield last
            last = Paragraph(page, " ".join(part.split()))
    if last is not None:
        yield last


def measured(text: str) -> set[str]:
    """The numbers of a text that look measured."""
    return {next(filter(None, found)) for found in _MEASURED.findall(_NO_MEASUREMENT.sub(" ", text))}


def shown(claim: str) -> list[str]:
    """The numbers that a claim is about, e.g. ["0.051", "6%"]."""
    return claim.partition(" = ")[0].split()


def value_of(source: str, field: str) -> float:
    """The field's value, from a JSON file or from the package."""
    parts = re.split(r" ([-/]) ", field)
    if len(parts) == 3:
        left, right = value_of(source, parts[0]), value_of(source, parts[2])
        return left - right if parts[1] == "-" else left / right
    if source.startswith("cocomix"):
        found: Any = importlib.import_module(source)
        for name in field.split("."):
            fields = getattr(found, "model_fields", {})
            found = fields[name].default if name in fields else getattr(found, name)
        return float(found)
    found = json.loads((ROOT / source).read_text(encoding="utf-8"))
    for key, wanted in re.findall(r"([^.\[\]=]+)(?:=([^\]]+))?", field):
        if wanted:
            (found,) = [each for each in found if str(each[key]) == wanted]
        else:
            found = found[int(key)] if isinstance(found, list) else found[key]
    return float(found)


def rounded(value: float, like: str) -> str:
    """A value with the unit and the decimals of another, without its sign: "24.7%", "1,126", "0.96M"."""
    number, unit = re.fullmatch(r"([\d,.e-]+)(\D*)", like.lstrip("+-−")).groups()  # type: ignore[union-attr]
    value = abs(value) * _SCALES[unit]
    if "e" in number:
        return f"{value:.{len(number.partition('e')[0].partition('.')[2])}e}".replace("e-0", "e-") + unit
    return f"{value:{',' if ',' in number else ''}.{len(number.partition('.')[2])}f}" + unit


def check(claim: str, paragraph: Paragraph) -> None:
    """See that a claim's source says what the paragraph says."""
    source, _, field = claim.partition(" = ")[2].partition(" ")
    assert field, claim
    if source == "paper":
        assert re.search("paper|reports", paragraph.text), f"{paragraph} does not say whose number this is"
        return
    if source.startswith("tests/"):
        assert field in (ROOT / source).read_text(encoding="utf-8"), claim
        return
    for number in shown(claim):
        if field.startswith('"'):
            assert number in field, claim
            words = " ".join((ROOT / source).read_text(encoding="utf-8").split())
            assert field.strip('"') in words, f"{source} does not say {field}"
        else:
            assert rounded(value_of(source, field), number) == number, f"{claim}: {value_of(source, field)}"


FOUND = [
    found
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
    for found in paragraphs(page, page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("paragraph", [each for each in FOUND if measured(each.text)], ids=str)
def test_every_number_has_a_source(paragraph: Paragraph) -> None:
    claimed = {number.rstrip("%kMT") for claim in paragraph.claims for number in shown(claim)}
    assert "all" in claimed or measured(paragraph.text) <= claimed, measured(paragraph.text) - claimed


@pytest.mark.parametrize(
    ("claim", "paragraph"),
    [pytest.param(claim, each, id=f"{each}: {claim}") for each in FOUND for claim in each.claims],
)
def test_a_number_is_what_its_source_says(claim: str, paragraph: Paragraph) -> None:
    assert shown(claim) == ["all"] or all(number in paragraph.text for number in shown(claim)), claim
    check(claim, paragraph)


def test_a_number_without_source_a_drifted_one_and_a_wrong_field_are_noticed() -> None:
    page = ROOT / "docs" / "page.md"
    text = "It ends 0.5 nats behind (p = 0.03), 12% and 3 MB later, in Python 3.11 with `1.5` and Eq. 2.\n"
    (bare,) = paragraphs(page, text)
    assert measured(bare.text) == {"0.5", "0.03", "12", "3"}
    table = "results/reproduction/report/table.json"
    text = f"KD ends 0.055 nats ahead.\n<!-- claim: 0.055 = {table} rows[name=kd].difference -->\n\n    0.7 nats\n"
    (right,) = paragraphs(page, text)
    check(right.claims[0], right)
    for wrong in (right.claims[0].replace("0.055", "0.056"), right.claims[0].replace("difference", "tokens")):
        with pytest.raises(AssertionError):
            check(wrong, right)
    with pytest.raises(ValueError, match="unpack"):
        check(right.claims[0].replace("kd", "kdd"), right)
