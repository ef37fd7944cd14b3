"""Downstream results of several arms as the paper's Table 1 lays them out."""

from collections.abc import Sequence

import pandas as pd

from cocomix.evaluation.downstream import PAPER_TASKS, Downstream, read_downstream
from cocomix.evaluation.formatting import NOTHING
from cocomix.evaluation.pages import Table
from cocomix.evaluation.statistics import t_test
from cocomix.training import Run


def downstream_numbers(runs: Sequence[Run]) -> tuple[pd.DataFrame | None, str]:
    """A row per run by the name of its arm, and how to read it or why there is none; accuracies are in percent.

    Only results under equal conditions stand side by side: harness, context, batch size, precision, rows and their
    source. Tasks that some run lacks are left out and named.
    """
    found: list[Downstream] = []
    for run in runs:
        if (each := read_downstream(run.path)) is None:
            return None, (
                f"There is no table of downstream tasks: {run.manifest.name} was not measured on any; use `cocomix "
                "eval RUN --tasks paper` on every run."
            )
        found.append(each)
    if any(each.conditions != found[0].conditions for each in found):
        return None, "There is no table of downstream tasks: the runs were measured under different conditions."
    shared = [name for name in PAPER_TASKS if all(name in each.tasks for each in found)]
    tasks = [name for name in shared if len({each.tasks[name].source for each in found}) == 1]
    if not tasks:
        return None, "There is no table of downstream tasks: no task was measured on the same rows by all runs."
    rows = [_numbers(tasks, run.perplexity, each) for run, each in zip(runs, found, strict=True)]
    return pd.DataFrame(rows, index=[run.manifest.name for run in runs]), _note(tasks, shared, found)


def downstream_table(numbers: pd.DataFrame) -> Table:
    """Means over the seeds of each arm, with ± where there are several."""
    groups = numbers.groupby(level=0, sort=False)
    rows = [(str(name), *(_cell(group[column].tolist()) for column in numbers)) for name, group in groups]
    return Table(("run", *numbers.columns), rows, "Downstream tasks")


def _numbers(tasks: Sequence[str], validation: float, result: Downstream) -> dict[str, float]:
    """Validation perplexity, each task's number, and the paper's averages where all their tasks are among them."""
    row = {"validation, perplexity, lower is better": validation}
    for name in tasks:
        value = result.value(name)
        assert value is not None
        accuracy = PAPER_TASKS[name].kind == "accuracy"
        row[f"{name}, %, higher is better" if accuracy else f"{name}, perplexity, lower is better"] = (
            100 * value if accuracy else value
        )
    missing = {shown.kind for name, shown in PAPER_TASKS.items() if name not in tasks}
    if "perplexity" not in missing and (mean := result.average("perplexity", validation)) is not None:
        row["mean perplexity, lower is better"] = mean
    if "accuracy" not in missing and (mean := result.average("accuracy")) is not None:
        row["mean accuracy, %, higher is better"] = 100 * mean
    return row


def _cell(values: Sequence[float]) -> str:
    found = t_test(values)
    shown = f"{found.mean:,.1f}" if found.mean < 1e5 else f"{found.mean:.1e}"  # an untrained model's perplexity
    return shown if len(values) < 2 else f"{shown} ± {found.half_width:.1f}"


def _note(tasks: Sequence[str], shared: Sequence[str], every: Sequence[Downstream]) -> str:
    conditions, results = every[0].conditions, every[0].tasks
    cut = ", ".join(
        f"{name} {results[name].truncated / results[name].requests:.0%}" for name in tasks if results[name].truncated
    )
    local = [name for name in tasks if results[name].source != "hub"]
    parts = [
        f"Downstream tasks: lm-evaluation-harness {conditions.harness}, zero-shot, {conditions.dtype}, "
        f"at most {conditions.context} tokens at once",
        f"prompts that lost their beginning to that: {cut or NOTHING}",
    ]
    if conditions.limit is not None:
        parts.append(f"only the first {conditions.limit:,} rows of each")
    if local:
        parts.append(f"rows from local files, which may be part of the official ones: {', '.join(local)}")
    if len(shared) > len(tasks):
        parts.append(f"left out, measured on other rows: {', '.join(name for name in shared if name not in tasks)}")
    chosen = ", ".join(f"{name} {PAPER_TASKS[name].metric}" for name in tasks)
    return f"{'; '.join(parts)}. Shown: {chosen}."
