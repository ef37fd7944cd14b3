"""Downstream results of several arms as the paper's Table 1 lays them out."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from cocomix.evaluation.arms import Arm
from cocomix.evaluation.downstream import PAPER_TASKS, Downstream, read_downstream
from cocomix.evaluation.formatting import NOTHING
from cocomix.evaluation.statistics import t_interval

__all__ = ["DownstreamTable", "downstream_table"]


@dataclass(frozen=True)
class DownstreamTable:
    """A table of downstream results.

    Attributes:
        columns: headings: the run, the validation perplexity, every task that all runs have, and the paper's averages.
        rows: numbers per arm, means over seeds; accuracies in percent.
        cells: the same as text, with ± where there are several seeds.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]
    cells: tuple[tuple[str, ...], ...]


def downstream_table(arms: Sequence[Arm]) -> tuple[DownstreamTable | None, str]:
    """The table, and how to read it or why there is none.

    Only results under equal conditions stand side by side: harness, context, batch size, precision, rows and their
    source. Tasks that some run lacks are left out and named.
    """
    found: dict[str, list[Downstream]] = {}
    for arm in arms:
        read = [read_downstream(run.path) for run in arm.runs]
        found[arm.name] = [each for each in read if each is not None]
        if len(found[arm.name]) < len(read):
            return None, (
                f"There is no table of downstream tasks: {arm.name} was not measured on any; use `cocomix eval RUN "
                "--tasks paper` on every run."
            )
    every = [each for results in found.values() for each in results]
    first = every[0]
    if any(each.conditions != first.conditions for each in every):
        return None, "There is no table of downstream tasks: the runs were measured under different conditions."
    shared = [name for name in PAPER_TASKS if all(name in each.tasks for each in every)]
    unlike = [name for name in shared if len({each.tasks[name].source for each in every}) > 1]
    tasks = [name for name in shared if name not in unlike]
    if not tasks:
        return None, "There is no table of downstream tasks: no task was measured on the same rows by all runs."
    columns, rows, cells = _columns(tasks), [], []
    for arm in arms:
        by_seed = [
            _numbers(tasks, run.perplexity, result) for run, result in zip(arm.runs, found[arm.name], strict=True)
        ]
        means = tuple(fmean(column) for column in zip(*by_seed, strict=True))
        rows.append((arm.name, means))
        cells.append((arm.name, *(_cell(column) for column in zip(*by_seed, strict=True))))
    return DownstreamTable(columns, tuple(rows), tuple(cells)), _note(tasks, shared, every)


def _columns(tasks: Sequence[str]) -> tuple[str, ...]:
    arrows = {"perplexity": "↓", "accuracy": "↑"}
    columns = ["run", "validation ↓", *(f"{name} {arrows[PAPER_TASKS[name].kind]}" for name in tasks)]
    kinds = {kind: {name for name, shown in PAPER_TASKS.items() if shown.kind == kind} for kind in arrows}
    if kinds["perplexity"] <= set(tasks):
        columns.append("mean ppl ↓")
    if kinds["accuracy"] <= set(tasks):
        columns.append("mean acc ↑")
    return tuple(columns)


def _numbers(tasks: Sequence[str], validation: float, result: Downstream) -> list[float]:
    """One run's row: perplexities, accuracies in percent."""
    numbers = [validation]
    for name in tasks:
        value = result.value(name)
        assert value is not None
        numbers.append(100 * value if PAPER_TASKS[name].kind == "accuracy" else value)
    perplexity, accuracy = result.average_perplexity(validation), result.average_accuracy()
    numbers += [] if perplexity is None else [perplexity]
    return numbers + ([] if accuracy is None else [100 * accuracy])


def _cell(values: Sequence[float]) -> str:
    mean, interval = fmean(values), t_interval(values)
    shown = f"{mean:,.1f}" if mean < 1e5 else f"{mean:.1e}"  # an untrained model's perplexity
    return shown if interval is None else f"{shown} ± {interval.half_width:.1f}"


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
