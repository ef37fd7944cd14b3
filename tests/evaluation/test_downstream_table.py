import pytest

from cocomix.artifacts import write_json
from cocomix.evaluation import Run, compare
from cocomix.evaluation.comparison import comparison_tables
from cocomix.evaluation.downstream import PAPER_TASKS, Downstream, HarnessConditions, TaskResult, lacking_tasks
from tests.evaluation.test_compare import COCOMIX

CONDITIONS = HarnessConditions(harness="0.4.13", context=128, dtype="float32", limit=None)


def result(value, tasks=tuple(PAPER_TASKS), source="hub", conditions=CONDITIONS):
    measured = {"requests": 10, "truncated": 1, "endings_cut": 0, "examples": 5, "source": source, "batch_size": 8}
    found = {
        name: TaskResult(**measured, metrics={PAPER_TASKS[name].metric: value * (100 if name == "wikitext" else 1)})
        for name in tasks
    }
    return Downstream(conditions=conditions, tasks=found)


def compared(write_run, ours, theirs):
    runs = [write_run("ntp", [6.0, 4.0]), write_run("ours", [6.0, 4.0], **COCOMIX)]
    for folder, found in zip(runs, (ours, theirs), strict=True):
        if found is not None:
            found.conditions.file(folder).parent.mkdir(parents=True)
            write_json(found.conditions.file(folder), found.model_dump())
    return compare([Run.open(folder) for folder in runs])


def test_tasks_that_are_lacking(tmp_path):
    def measured(found):
        found.conditions.file(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        write_json(found.conditions.file(tmp_path), found.model_dump())

    assert lacking_tasks(tmp_path, ["paper", "piqa"]) == [*PAPER_TASKS]
    measured(result(0.5, conditions=CONDITIONS.model_copy(update={"limit": 5})))
    assert lacking_tasks(tmp_path, ["paper"]) == [*PAPER_TASKS]
    measured(result(0.5, tasks=("piqa", "wikitext")))
    assert lacking_tasks(tmp_path, ["piqa", "mmlu"]) == ["mmlu"]
    assert lacking_tasks(tmp_path, ["piqa"]) == lacking_tasks(tmp_path, []) == []


def test_the_papers_averages(write_run):
    comparison = compared(write_run, result(0.25), result(0.5))
    columns = list(comparison.downstream.columns)
    assert columns[-2:] == ["mean perplexity, lower is better", "mean accuracy, %, higher is better"]
    row = comparison.to_json()["downstream"]["ours"]
    assert row["piqa, %, higher is better"] == row[columns[-1]] == 50.0
    assert row[columns[-2]] == pytest.approx((54.598 + 0.5 + 50.0) / 3, rel=1e-4)
    assert "wikitext 10%" in comparison.notes[-1]
    assert comparison_tables(comparison)["downstream"].rows[0][0] == "ntp"
    assert comparison.to_json()["downstream"]["ntp"]["piqa, %, higher is better"] == 25.0


def test_only_what_is_alike_stands_side_by_side(write_run, tmp_path):
    comparison = compared(write_run, result(0.25), result(0.5, tasks=("piqa", "arc_easy")))
    names = [column.partition(",")[0] for column in comparison.downstream.columns]
    assert names == ["validation", "piqa", "arc_easy"]


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (None, "ours was not measured on any"),
        (result(0.5, conditions=CONDITIONS.model_copy(update={"context": 64})), "under different conditions"),
        (result(0.5, source="a file"), "no task was measured on the same rows"),
    ],
)
def test_no_table_of_unlike_results(theirs, reason, write_run):
    comparison = compared(write_run, result(0.25), theirs)
    assert comparison.downstream is None
    assert reason in comparison.notes[-1]
