import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocomix.evaluation.compare_runs import compare
from cocomix.evaluation.comparison import COLUMNS, REACH_COLUMNS, SETTING_COLUMNS
from cocomix.evaluation.reach import Reach, mean_curve, reach
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import CurvePoint, Run

COCOMIX = {
    "objective": "cocomix",
    "mixing": "residual",
    "labels": {"path": "labels", "fingerprint": "l" * 64},
    "parameters": {"total": 2000, "active": 1100},
    "flops_per_token": {"forward": 20.0, "training": 60.0},
    "seconds": 100.0,
    "learning_rate": 1e-3,
    "concept_loss_weight": 0.1,
}


def points(*losses: float) -> list[CurvePoint]:
    """Evaluations every 100 tokens; 2 seconds and 5 FLOPs a token."""
    return [CurvePoint(100 * i, 200.0 * i, 500.0 * i, loss) for i, loss in enumerate(losses, start=1)]


def test_reach_interpolates_linearly_in_tokens():
    found = reach(points(6.0, 5.0, 4.0), 4.75)
    assert found == Reach(tokens=225.0, flops=1125.0, seconds=450.0, at_first_evaluation=False)


def test_reach_at_a_point_before_the_first_and_never():
    assert reach(points(6.0, 5.0, 4.0), 5.0) == Reach(200.0, 1000.0, 400.0, False)
    assert reach(points(6.0, 5.0), 7.0) == Reach(100, 500.0, 200.0, True)
    assert reach(points(6.0, 5.0), 4.9) is None


def test_reach_takes_the_first_crossing_of_a_curve_that_rises_again():
    found = reach(points(6.0, 4.0, 5.0, 3.0), 4.5)
    assert found is not None
    assert found.tokens == 175.0


@given(
    losses=st.lists(st.floats(0.5, 9.0), min_size=2, max_size=12),
    loss=st.floats(0.5, 9.0),
)
def test_reach_lies_on_the_curve(losses, loss):
    curve = points(*losses)
    found = reach(curve, loss)
    if found is None:
        assert min(losses) > loss
        return
    assert curve[0].tokens <= found.tokens <= curve[-1].tokens
    assert found.seconds == pytest.approx(2 * found.tokens)
    assert found.flops == pytest.approx(5 * found.tokens)
    index = min(int(found.tokens // 100), len(losses) - 1) - 1
    part = found.tokens / 100 - 1 - index
    if not found.at_first_evaluation:
        assert losses[index] + part * (losses[index + 1] - losses[index]) == pytest.approx(loss, abs=1e-6)


def test_table_by_hand(write_run):
    runs = [Run.open(write_run("ntp", [6.0, 5.0])), Run.open(write_run("ours", [5.5, 4.5], **COCOMIX))]
    comparison = compare(runs)
    assert comparison.baseline == "ntp"
    base, ours = comparison.rows
    assert (base.difference, base.reach) == (0.0, Reach(1000.0, 30000.0, 50.0, False))
    assert ours.kind == "cocomix, residual"
    assert ours.difference == -0.5
    assert ours.perplexity == pytest.approx(math.exp(4.5))
    assert ours.training_flops == 60_000.0
    assert ours.tokens_per_second == 10.0
    assert ours.reach == Reach(750.0, 45_000.0, 75.0, False)
    assert comparison.cells()[1] == (
        "ours", "cocomix, residual", "1", "4.500", "90.0", "\u22120.500", "60.0 k", "\u2013", "1 min 40 s", "10",
    )  # fmt: skip
    assert comparison.setting_cells()[1] == (
        "ours", "2.00 k", "1.10 k", "0.1", "0.001", "10", "1.00 k", "60.0",
    )  # fmt: skip
    assert comparison.reach_cells() == [
        ("ours", "750", "25.0%", "45.0 k", "50.0% more", "\u2013", "\u2013", "1 min 15 s", "50.0% more")
    ]
    for columns, cells in (
        (COLUMNS, comparison.cells()),
        (SETTING_COLUMNS, comparison.setting_cells()),
        (REACH_COLUMNS, comparison.reach_cells()),
    ):
        assert len(cells[0]) == len(columns)


def test_not_reached_is_said(write_run):
    runs = [Run.open(write_run("ntp", [6.0, 5.0])), Run.open(write_run("ours", [7.0, 5.1], **COCOMIX))]
    comparison = compare(runs)
    assert comparison.rows[1].reach is None
    assert comparison.reach_cells()[0][1] == "not reached"
    assert "not reached" in comparison.to_markdown()


def test_markdown_csv_and_json_agree(write_run):
    hostile = "a|b<script>*x*"
    runs = [Run.open(write_run("ntp", [6.0, 5.0])), Run.open(write_run(hostile, [5.5, 4.5], **COCOMIX))]
    comparison = compare(runs)
    markdown = comparison.to_markdown()
    assert r"a\|b\<script\>\*x\*" in markdown
    assert all(line.replace(r"\|", "").count("|") == len(COLUMNS) + 1 for line in markdown.splitlines()[:4])
    rows = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    assert rows[1]["name"] == hostile
    assert float(rows[1]["validation_loss"]) == 4.5
    assert float(rows[1]["tokens_to_baseline_loss"]) == 750.0
    values = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert values["baseline"] == "ntp"
    assert values["rows"][1]["reach"]["flops"] == 45_000.0
    assert values["curves"][hostile][0] == {"tokens": 500, "seconds": 50.0, "flops": 30000.0, "loss": 5.5}


def test_of_several_baselines_the_nearest_in_active_parameters(write_run):
    small = Run.open(write_run("same-width", [6.0], parameters={"total": 900, "active": 900}))
    matched = Run.open(write_run("matched", [6.0], parameters={"total": 1090, "active": 1090}))
    ours = Run.open(write_run("ours", [5.0], **COCOMIX))
    comparison = compare([small, matched, ours])
    assert comparison.baseline == "matched"
    assert "nearest the others' mean of 1.10 k" in comparison.notes[0]
    assert compare([small, matched, ours], "ours").baseline == "ours"
    assert compare([small, matched]).baseline == "same-width"


def test_a_baseline_that_rises_again_is_measured_at_its_own_first_crossing(write_run):
    runs = [
        Run.open(write_run("ntp", [6.0, 4.0, 5.0, 5.0])),
        Run.open(write_run("ours", [6.0, 5.0, 4.0, 3.0], **COCOMIX)),
    ]
    comparison = compare(runs)
    assert comparison.rows[0].reach.tokens == 375.0
    assert comparison.reach_cells()[0][2] == "33.3% more"
    assert any("itself first reaches its final loss after 375" in note for note in comparison.notes)


def test_other_devices_and_labels_are_stated(write_run):
    one = Run.open(write_run("ours", [6.0, 5.0], **COCOMIX))
    labels = {"path": "other", "fingerprint": "m" * 64}
    two = Run.open(write_run("theirs", [5.5, 4.5], **{**COCOMIX, "labels": labels, "device": "cuda"}))
    notes = " ".join(compare([one, two], "ours").notes)
    assert "seconds do not compare: cpu, cuda" in notes
    assert f"differ in labels: {'l' * 16}, {'m' * 16}" in notes
    assert "teacher's FLOPs are not known for ours, theirs" in notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"fingerprint": "x" * 64}}, f"'ntp' and 'ours' differ in their data .{'d' * 16} and {'x' * 16}"),
        ({"data": {"tokenizer_fingerprint": "y" * 64}}, f"differ in their tokenizer .{'t' * 16} and {'y' * 16}"),
        ({"data": {"block_size": 256}}, "differ in their block size .128 and 256"),
        ({"tokens": 2000}, "differ in their training tokens .1,000 and 2,000"),
        ({"training_dtype": "bfloat16"}, "differ in their training precision .float32 and bfloat16"),
        ({"evaluation_blocks": 8}, "differ in their number of validation blocks .64 and 8"),
        ({"evaluation_dtype": "bfloat16"}, "differ in their evaluation precision .float32 and bfloat16"),
    ],
)
def test_unlike_runs_are_refused_with_names_and_values(write_run, changes, message):
    one = Run.open(write_run("ntp", [6.0]))
    changes = {**changes}
    if "data" in changes:
        changes["data"] = {**one.manifest.data.model_dump(), **changes["data"]}
    two = Run.open(write_run("ours", [5.0], **{**COCOMIX, **changes}))
    with pytest.raises(CoCoMixError, match=message):
        compare([one, two])


def test_other_refusals(write_run):
    ntp, ours = Run.open(write_run("ntp", [6.0])), Run.open(write_run("ours", [5.0], **COCOMIX))
    again = Run.open(write_run("ours", [5.0], folder="copy", **COCOMIX))
    third = Run.open(write_run("third", [5.0], **COCOMIX))
    with pytest.raises(CoCoMixError, match="two runs"):
        compare([ntp])
    with pytest.raises(CoCoMixError, match=r"'ours'.*seed 0"):
        compare([ntp, ours, again])
    with pytest.raises(CoCoMixError, match=r"'other'.*ntp, ours"):
        compare([ntp, ours], "other")
    with pytest.raises(CoCoMixError, match="--baseline: ours, third"):
        compare([ours, third])


# --- seeds ------------------------------------------------------------------------------------------------------------


def seeds(write_run, name, curves, **changes):
    return [
        Run.open(write_run(name, losses, folder=f"{name}{seed}", seed=seed, **changes))
        for seed, losses in enumerate(curves)
    ]


def test_seeds_of_one_name_are_one_arm_measured_seed_by_seed(write_run):
    base = seeds(write_run, "ntp", [[6.0, 5.0], [6.0, 5.2]])
    ours = seeds(write_run, "ours", [[5.5, 4.5], [5.2, 4.2]], **COCOMIX)
    comparison = compare([*base, *ours])
    row = comparison.rows[1]
    assert [each.name for each in comparison.rows] == ["ntp", "ours"]
    assert (row.seeds, row.losses, row.reached) == ((0, 1), (4.5, 4.2), 2)
    assert row.validation_loss == pytest.approx(4.35)
    # Differences −0.5 and −1.0: mean −0.75, s = 0.3536, t(0.975, 1) = 12.7062, half width 12.7062 · 0.25.
    assert row.difference == pytest.approx(-0.75)
    assert row.difference_interval.half_width == pytest.approx(12.7062 * 0.25, rel=1e-5)
    # Seed 0 reaches 5.0 half-way between 500 and 1,000 tokens, seed 1 reaches 5.2 at once: 25% and 50% saved.
    assert row.saving.tokens == pytest.approx(0.375)
    assert row.saving.tokens_interval.low == pytest.approx(0.375 - 12.7062 * 0.125, rel=1e-5)
    assert row.reach == Reach(625.0, 37_500.0, 62.5, at_first_evaluation=True)
    assert comparison.curves["ours"][-1].loss == pytest.approx(4.35)
    assert "95% t-intervals" in " ".join(comparison.notes)
    assert "±" in comparison.to_markdown()
    assert json.loads(json.dumps(comparison.to_json(), allow_nan=False))["rows"][1]["losses"] == [4.5, 4.2]


def test_a_baseline_without_the_seeds_is_taken_as_its_mean(write_run):
    base = seeds(write_run, "ntp", [[6.0, 5.0]])
    ours = seeds(write_run, "ours", [[5.5, 4.5], [5.5, 4.9]], **COCOMIX)
    comparison = compare([*base, *ours])
    assert comparison.rows[1].difference == pytest.approx(-0.3)
    assert "lacks seeds of ours" in " ".join(comparison.notes)
    assert comparison.rows[0].loss_interval is None


def test_some_seeds_reach_and_some_do_not(write_run):
    base = seeds(write_run, "ntp", [[6.0, 5.0], [6.0, 5.0]])
    ours = seeds(write_run, "ours", [[5.5, 4.5], [5.5, 5.1]], **COCOMIX)
    comparison = compare([*base, *ours])
    assert (comparison.rows[1].reached, comparison.rows[1].reach, comparison.rows[1].saving) == (1, None, None)
    assert comparison.reach_cells()[0][1] == "not reached by 1 of 2 seeds"


def test_an_arm_holds_one_model_and_each_seed_once(write_run):
    ntp = seeds(write_run, "ntp", [[5.0]])
    ours = seeds(write_run, "ours", [[5.0]], **COCOMIX)
    other = Run.open(write_run("ours", [5.0], folder="other", seed=1, **{**COCOMIX, "mixing": "add"}))
    with pytest.raises(CoCoMixError, match=r"'ours'.*mixing.*residual.*add"):
        compare([*ntp, *ours, other])
    with pytest.raises(CoCoMixError, match="different names"):
        compare(seeds(write_run, "same", [[5.0], [5.0]]))


def test_the_mean_curve_keeps_to_shared_evaluations():
    one, two = points(6.0, 5.0, 4.0), points(6.2, 5.2, 4.4)[1:]
    mean = mean_curve([one, two])
    assert [point.tokens for point in mean] == [200, 300]
    assert [point.loss for point in mean] == pytest.approx([5.1, 4.2])
    assert mean_curve([one]) == tuple(one)
