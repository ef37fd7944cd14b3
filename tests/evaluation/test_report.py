import csv
import re
from html.parser import HTMLParser

import matplotlib
import pytest

from cocomix.evaluation.compare_runs import compare
from cocomix.evaluation.figures import AXES, DARK, LIGHT, draw_curves
from cocomix.evaluation.page import Code, Image, Page, Paragraph, Points, Section, SideBySide, Table, Tokens
from cocomix.evaluation.reliance import Reliance, RunReliance
from cocomix.evaluation.report import reliance_section, summary, write_report
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run
from tests.evaluation.test_compare import COCOMIX

HOSTILE = "<script>alert('x')</script>\"&$1$"


class Checker(HTMLParser):
    """Collects tags and addresses and sees that every element is closed."""

    VOID = {"meta", "img", "source", "br"}  # noqa: RUF012

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.open = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def comparison(write_run):
    return compare(
        [
            Run.open(write_run("ntp", [7.0, 6.0, 5.5, 5.0])),
            Run.open(write_run("paper form", [7.5, 6.5, 5.6, 5.2], **{**COCOMIX, "mixing": "interleave"})),
            Run.open(write_run(HOSTILE, [6.5, 5.5, 4.8, 4.5], folder="hostile", **COCOMIX)),
        ]
    )


def test_report_folder_is_whole_and_self_contained(comparison, tmp_path):
    page = write_report(comparison, tmp_path / "report")
    assert sorted(file.name for file in page.parent.iterdir()) == [
        "loss_vs_flops.png", "loss_vs_seconds.png", "loss_vs_tokens.png", "report.html", "table.csv", "table.json",
        "table.md",
    ]  # fmt: skip
    html = page.read_text(encoding="utf-8")
    checker = Checker(html)
    assert checker.tags.count("img") == 3
    assert checker.addresses
    assert all(address.startswith("data:image/png;base64,") for address in checker.addresses)
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html
    rows = list(csv.DictReader((page.parent / "table.csv").open(encoding="utf-8")))
    assert [row["name"] for row in rows] == ["ntp", "paper form", HOSTILE]


def test_hostile_names_stay_text(comparison, tmp_path):
    html = write_report(comparison, tmp_path / "report", title=HOSTILE).read_text(encoding="utf-8")
    assert "script" not in Checker(html).tags
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_every_block_escapes_its_text():
    blocks = [
        Paragraph(HOSTILE),
        Paragraph(HOSTILE, quiet=True),
        Points([HOSTILE]),
        Table([HOSTILE, "n"], [[HOSTILE, HOSTILE]], caption=HOSTILE),
        Code(HOSTILE),
        Image(b"png", alt=HOSTILE, caption=HOSTILE, dark_png=b"dark"),
        Tokens([(HOSTILE, 0.5, HOSTILE)], legend=HOSTILE),
        SideBySide([(HOSTILE, HOSTILE)]),
    ]
    html = Page(HOSTILE, [HOSTILE], [Section(HOSTILE, blocks)], footer=HOSTILE).html()
    assert "script" not in Checker(html).tags
    assert "<script" not in html
    assert 'alt="&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&quot;&amp;$1$"' in html


def test_token_strength_is_clamped():
    html = Tokens([("a", 7.0, ""), ("b", -1.0, "")], legend="").html()
    assert re.findall(r"--s:([\d.]+)", html) == ["1.00", "0.00"]


def test_summary_says_who_won_either_way(comparison, write_run):
    text = " ".join(summary(comparison))
    assert "has the lowest validation loss: 4.500 nats per token against 5.000 of the baseline, ntp" in text
    # The baseline passes 5.2 at 750 + 250 · (5.5 − 5.2)/(5.5 − 5.0) = 900 of 1,000 tokens: 27,000 of 60,000 FLOPs.
    assert (
        "paper form ends 0.200 nats above the baseline (5.200) and does not reach the baseline's final loss; the "
        "baseline reaches paper form's with 10.0% fewer tokens, 55.0% fewer training FLOPs and 55.0% less training "
        "time."
    ) in text
    assert "ends 0.500 nats below the baseline (4.500)" in text
    assert "with 32.1% fewer tokens, 35.7% more training FLOPs and 35.7% more training time" in text
    assert "One run with one seed each" in text
    lost = compare([Run.open(write_run("base", [5.0])), Run.open(write_run("loser", [6.0], **COCOMIX))])
    assert summary(lost)[0] == "The baseline, base, has the lowest validation loss: 5.000 nats per token."
    level = compare([Run.open(write_run("a", [5.0])), Run.open(write_run("b", [5.0], **COCOMIX))])
    assert "ends level with the baseline (5.000)" in summary(level)[1]


def test_reliance_section_shows_differences():
    kinds = {"zero": Reliance(nats=0.25, low=0.2, high=0.3), "shuffle": Reliance(nats=-0.5, low=-0.6, high=-0.4)}
    one = RunReliance(kinds=kinds, documents=9)
    two = RunReliance(kinds={"zero": Reliance(nats=0.125, low=0.1, high=0.2)}, documents=9)
    html = "".join(block.html() for block in reliance_section({"one": one, "two": two}).blocks)
    for text in ("+0.250", "+0.125", "\u22120.500", "\u2013"):
        assert text in html


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.field)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_curves_are_png_and_leave_matplotlib_as_it_was(comparison, axis, theme):
    before = dict(matplotlib.rcParams)
    image = draw_curves(comparison, axis, theme)
    assert image.startswith(b"\x89PNG")
    assert image == draw_curves(comparison, axis, theme), "the same runs give the same bytes"
    assert dict(matplotlib.rcParams) == before


def test_single_point_curves_and_many_runs_can_be_drawn(write_run):
    runs = [Run.open(write_run("ntp", [5.0]))]
    runs += [Run.open(write_run(f"a very long name of an arm number {i}", [5.0], **COCOMIX)) for i in range(9)]
    for axis in AXES:
        assert draw_curves(compare(runs), axis, LIGHT).startswith(b"\x89PNG")


def test_an_existing_folder_is_not_overwritten(comparison, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine").write_text("x")
    with pytest.raises(CoCoMixError, match="already exists"):
        write_report(comparison, tmp_path / "report")
    assert [file.name for file in (tmp_path / "report").iterdir()] == ["mine"]
