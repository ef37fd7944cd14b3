"""The report: five sentences that follow from the numbers, one loss, the same numbers on page, terminal and file."""

import json
import logging
from typing import Any

import matplotlib
import pandas as pd
import pytest
from rich.console import Console

from cocomix.evaluation import Comparison, Run, compare, shown, write_report
from cocomix.evaluation.report import AXES, draw_curves, found
from cocomix.runtime.errors import CoCoMixError
from tests.evaluation.conftest import WriteRun
from tests.evaluation.test_compare import COCOMIX, GRAMS, measured, seeds
from tests.evaluation.test_pages import Checker

HOSTILE = "mine_ntp <script>alert('x')</script>\"&$1$"


@pytest.fixture
def comparison(write_run: WriteRun) -> Comparison:
    base = seeds(write_run, "ntp", [[7.0, 6.0, 5.0], [7.0, 6.1, 5.1]], shift=0.0, own=0.02)
    ours = seeds(write_run, HOSTILE, [[6.5, 5.5, 4.9], [6.6, 5.6, 5.0]], shift=-0.05, own=0.02, **COCOMIX)
    return compare([*base, *ours])


def changed(comparison: Comparison, references: dict[str, float] | None = None, **numbers: Any) -> Comparison:
    """The comparison with other numbers of the second arm."""
    arms = comparison.arms.copy()
    for column, value in numbers.items():
        arms[column] = pd.Series([arms[column].iloc[0], value], dtype=float)
    fields = {name: getattr(comparison, name) for name in Comparison.__dataclass_fields__}
    return Comparison(
        **{**fields, "arms": arms, "references": comparison.references if references is None else references}
    )


def test_the_folder_is_whole_and_self_contained(comparison: Comparison, tmp_path: Any) -> None:
    page = write_report(comparison, tmp_path / "report", title=HOSTILE)
    assert sorted(file.name for file in page.parent.iterdir()) == [
        "loss_vs_flops.png", "loss_vs_seconds.png", "loss_vs_tokens.png", "report.html", "table.csv", "table.json",
        "table.md",
    ]  # fmt: skip
    html = page.read_text(encoding="utf-8")
    checker = Checker(html)
    assert checker.tags.count("img") == 3
    assert "script" not in checker.tags
    assert all(address.startswith("data:image/png;base64,") for address in checker.addresses)
    assert "http" not in html
    headings = [text for text in checker.texts if text in ("Result", "Loss during training", "Protocol")]
    assert headings == ["Result", "Loss during training", "Protocol"]
    assert json.loads((page.parent / "table.json").read_text()) == comparison.to_json()
    with pytest.raises(CoCoMixError, match="already exists"):
        write_report(comparison, tmp_path / "report")


def test_one_loss_on_page_terminal_and_file(comparison: Comparison, tmp_path: Any) -> None:
    """And nothing is escaped in the terminal, nor marked up on the page (`mine\\_ntp`, literal backticks)."""
    page = write_report(comparison, tmp_path / "report").read_text(encoding="utf-8")
    console = Console(width=400, color_system=None)
    with console.capture() as printed:
        console.print(shown(comparison))
    terminal, file = printed.get(), (tmp_path / "report" / "table.md").read_text(encoding="utf-8")
    for row in comparison.arms.itertuples():
        for text in (page, terminal, file):
            assert f"{row.loss:.3f}" in text
    assert HOSTILE in terminal
    assert "\\_" not in terminal
    assert r"mine\_ntp" in file
    for text in (terminal, page.split("</style>")[1]):
        assert "`" not in text
    assert "<code>cocomix eval</code>" in page
    for sentence in found(comparison):
        plain = sentence.replace("`", "")
        assert plain in terminal
        assert plain.split()[0] in " ".join(Checker(page).texts)
    shared = page.split("Shared by all runs")[1].split("</table>")[0]
    assert "training time" not in shared


def test_is_the_model_any_good(comparison: Comparison) -> None:
    first = found(comparison)[0]
    assert f"{comparison.arms['loss'].min():.3f}" in first
    assert "better than both" in first
    best = comparison.arms["loss"].min()
    assert "no better than the 4-gram" in found(changed(comparison, {**GRAMS, "fourgram": best - 0.01}))[0]
    # In little text a trigram may be better than the 4-gram, which alone is spoken of.
    few = {**GRAMS, "trigram": best - 0.01, "fourgram": best + 0.01}
    assert "better than both" in found(changed(comparison, few))[0]
    grams = {**GRAMS, "bigram": 4.0, "fourgram": 3.5}
    assert "all runs are worse than a bigram table" in found(changed(comparison, grams))[0]
    assert "`cocomix eval`" in found(changed(comparison, {}))[0]


def test_do_concepts_carry_more_than_the_token(comparison: Comparison) -> None:
    assert "was not measured" in found(comparison)[1]
    numbers = {"static_recall": 0.3, "token_recall": 0.95, "recall": 0.86, "shuffle_same_token": 0.011}
    told = found(changed(comparison, **numbers))[1]
    for part in ("30.0%", "95.0%", "86.0%", "+0.011", "mostly the token's identity"):
        assert part in told
    for static in (0.9, 0.79):  # of 32 of 256 concepts, a list that knows no token may recall nearly as much
        assert "the same few concepts" in found(changed(comparison, **{**numbers, "static_recall": static}))[1]
    assert "more than the token's identity" in found(changed(comparison, **{**numbers, "token_recall": 0.4}))[1]


def test_are_concepts_used(comparison: Comparison) -> None:
    told = found(changed(comparison, shuffle=0.2, shuffle_low=0.1, shuffle_high=0.3, mean=0.15))[2]
    assert "+0.200 (+0.100 … +0.300)" in told
    assert "+0.150" in told
    assert "does not measurably use" in found(changed(comparison, shuffle=0.0, shuffle_low=-0.1, shuffle_high=0.1))[2]


def test_does_it_pay(comparison: Comparison) -> None:
    surely = {"difference": -0.1, "documents_low": -0.2, "documents_high": -0.05}
    dear = {"tokens_ratio": 1.0, "flops_ratio": 1.4, "total_flops_ratio": 1.4, "seconds_ratio": 1.4}
    cheap = {"tokens_ratio": 1.0, "flops_ratio": 0.8, "total_flops_ratio": 9.6, "seconds_ratio": 1.01}
    told = found(changed(comparison, **surely, **dear))[3]
    assert "pays per token; whether it pays per FLOP of its own (×1.40) and second (×1.40) is open" in told
    assert "teacher" not in told
    told = found(changed(comparison, **surely, **cheap))[3]
    assert "pays per token, FLOP of its own (×0.80) and second." in told
    assert "teacher's work it costs ×9.6" in told
    worse = {"difference": 0.1, "documents_low": 0.05, "documents_high": 0.2}
    told = found(changed(comparison, **worse, **dear))[3]
    assert "does not pay per token, FLOP of its own (×1.40) and second (×1.40)." in told
    unsure = {"difference": -0.1, "documents_low": -0.2, "documents_high": 0.05}
    assert "not decided" in found(changed(comparison, **unsure, **dear))[3]


def test_on_which_words(comparison: Comparison) -> None:
    told = found(comparison)[4]
    assert told.index("name") < told.index("function word")  # names gain twice as much


def test_a_run_worse_than_a_bigram_is_warned_of(write_run: WriteRun, caplog: pytest.LogCaptureFixture) -> None:
    runs = [measured(write_run("ntp", [6.0]), 0.0), measured(write_run("bad", [6.0], **COCOMIX), 2.0)]
    with caplog.at_level(logging.WARNING):
        compare(runs)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["bad"]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dark", [False, True])
def test_curves_are_png_and_leave_matplotlib_as_it_was(comparison: Comparison, axis: str, dark: bool) -> None:
    before = dict(matplotlib.rcParams)
    image = draw_curves(comparison, axis, dark=dark)
    assert image.startswith(b"\x89PNG")
    assert image == draw_curves(comparison, axis, dark=dark), "the same runs give the same bytes"
    assert dict(matplotlib.rcParams) == before


def test_single_points_and_many_runs_can_be_drawn(write_run: WriteRun) -> None:
    runs = [Run.open(write_run("ntp", [5.0]))]
    runs += [Run.open(write_run(f"a very long name of an arm number {i}", [5.0 + i], **COCOMIX)) for i in range(10)]
    many = compare(runs)
    for axis in AXES:
        assert draw_curves(many, axis).startswith(b"\x89PNG")


def test_the_mean_curve_keeps_to_shared_evaluations(write_run: WriteRun) -> None:
    one = Run.open(write_run("ntp", [6.0, 5.0, 4.0, 3.0]))
    two = Run.open(write_run("ntp", [5.2, 3.4], folder="second", seed=1))
    other = Run.open(write_run("ours", [4.0], **COCOMIX))
    curve = compare([one, two, other], "ours").mean_curves()["ntp"]
    assert curve["tokens"].tolist() == [500, 1000]
    assert curve["loss"].tolist() == pytest.approx([5.1, 3.2])
    assert (curve["low"].tolist(), curve["high"].tolist()) == ([5.0, 3.0], [5.2, 3.4])
