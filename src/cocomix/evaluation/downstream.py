"""Downstream tasks through lm-evaluation-harness, by the harness's names or from local JSONL files; runs side by side.

The local task files in `tasks/` ask the same questions and compute the same metrics as the harness's own; only where
the rows come from differs.
"""

import hashlib
import logging
import math
import sys
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pandas as pd
import torch
import yaml
from pydantic import Field

from cocomix.artifacts import write_json
from cocomix.evaluation.inference import inference
from cocomix.evaluation.pages import NOTHING, Table
from cocomix.evaluation.run_evaluation import EVALUATIONS
from cocomix.evaluation.statistics import t_test
from cocomix.runtime.errors import CoCoMixError, require_extra
from cocomix.runtime.section import Record
from cocomix.training import Run

if TYPE_CHECKING:
    from cocomix.evaluation.harness import CountingModel

logger = logging.getLogger(__name__)

_FILE = "downstream.json"  # within a folder of the run's `evaluations` whose name says under which conditions

TASKS_FOLDER = Path(__file__).parent / "tasks"
"""The local task files; also for `lm_eval --include_path`, where each reads `NAME.jsonl` of the current folder."""


class TaskMetric(NamedTuple):
    """Which number of a task the paper's Table 1 shows."""

    metric: str
    kind: Literal["perplexity", "accuracy"]


PAPER_TASKS = {
    "lambada_openai": TaskMetric("perplexity", "perplexity"),
    "wikitext": TaskMetric("word_perplexity", "perplexity"),
    "hellaswag": TaskMetric("acc_norm", "accuracy"),
    "piqa": TaskMetric("acc_norm", "accuracy"),
    "social_iqa": TaskMetric("acc", "accuracy"),
    "arc_easy": TaskMetric("acc_norm", "accuracy"),
    "winogrande": TaskMetric("acc", "accuracy"),
}
"""The paper's tasks. It does not say which accuracy it shows: length-normalised where the harness has it is our
choice, as is perplexity per word for WikiText."""


class HarnessConditions(Record):
    """What must be equal for results to be compared."""

    harness: str  # version of lm-evaluation-harness
    context: int  # tokens the model reads at once; a longer prompt loses its beginning
    dtype: str
    limit: int | None  # rows used of each task; `None` = all

    def file(self, folder: Path) -> Path:
        """Where results under these conditions are in a run's folder."""
        rows = "" if self.limit is None else f"-{self.limit}rows"
        return folder / EVALUATIONS / f"tasks-harness{self.harness}-{self.context}tokens-{self.dtype}{rows}" / _FILE


class TaskResult(Record):
    """One task, or a group of tasks of the harness."""

    source: str  # `"hub"`, or the SHA-256 of the local file
    examples: int  # rows used
    requests: int  # texts scored: an ending each, or a window each of a long text
    truncated: int  # requests whose prompt lost its beginning
    endings_cut: int  # requests whose ending alone exceeds the context
    batch_size: int  # requests per forward pass; changes results by rounding alone
    # as the harness names them, e.g. `acc_norm`, and for accuracies `acc_norm_stderr` over the rows. Of a group, what
    # the harness aggregates
    metrics: dict[str, float]
    parts: dict[str, dict[str, float]] = Field(default_factory=dict)  # metrics of each task of a group


class Downstream(Record):
    """All tasks of one run under the same conditions."""

    format_version: Literal[2] = 2
    conditions: HarnessConditions
    tasks: dict[str, TaskResult]

    def table(self) -> Table:
        """Every metric and what was cut, for people."""
        rows = []
        for name, task in self.tasks.items():
            cut = f"{task.truncated:,} of {task.requests:,}"
            for part, metrics in {name: task.metrics, **task.parts}.items():
                rows += [(part, metric, f"{value:.4f}", f"{task.examples:,}", cut) for metric, value in metrics.items()]
        one = self.conditions
        caption = f"lm-evaluation-harness {one.harness}, zero-shot, {one.dtype}, context of {one.context} tokens"
        return Table(("task", "metric", "value", "rows", "prompts cut"), rows, caption=caption, text_columns=2)

    def value(self, task: str) -> float | None:
        """The number that the paper's table shows, for a model's card; `None` if not measured."""
        return self.tasks[task].metrics[PAPER_TASKS[task].metric] if task in self.tasks else None


def evaluate_tasks(
    run: Run,
    tasks: Sequence[str],
    *,
    device: torch.device,
    task_data: Path | None = None,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    limit: int | None = None,
) -> Downstream:
    """Measure a run on downstream tasks and write `evaluations/KEY/downstream.json` in its folder.

    KEY names the conditions. Tasks measured before under the same ones are kept in the file, others have their own.
    Refused where the harness is not installed, a task is unknown, or its data cannot be read.

    Args:
        tasks: names of `PAPER_TASKS`, or without `task_data` any of the harness's tasks and groups; `"paper"` = the
            paper's seven.
        task_data: folder with `NAME.jsonl` for each task; by default the harness fetches its data from the hub.
        dtype: float32 (default), or a narrower type used through autocast.
    """
    require_extra("eval", "lm_eval", purpose="a measurement of downstream tasks")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise CoCoMixError(f"batch size {batch_size} and limit {limit} must be at least 1.")
    from lm_eval import __version__ as harness_version
    from lm_eval.tasks import TaskManager

    from cocomix.evaluation.harness import CountingModel

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names = _names(tasks)
    model = run.model()
    conditions = HarnessConditions(
        harness=str(harness_version),
        context=int(model.config.max_position_embeddings),
        dtype=str(dtype).removeprefix("torch."),
        limit=limit,
    )
    found: dict[str, TaskResult] = {}
    manager = TaskManager(include_defaults=task_data is None)
    with TemporaryDirectory() as folder, inference(model, device):
        known = manager.all_tasks if task_data is None else PAPER_TASKS
        for name, (asked, source) in _sources(names, task_data, Path(folder), known).items():
            logger.info(f"{name}: scoring")
            wrapped = CountingModel(model, run.tokenizer(), batch_size=batch_size, dtype=dtype)
            found[name] = _evaluate_task(name, asked, source, wrapped, manager, limit)
            if (cut := found[name]).truncated:
                logger.warning(
                    f"{name}: {cut.truncated:,} of {cut.requests:,} prompts were longer than the context of "
                    f"{conditions.context} tokens and lost their beginning, {cut.endings_cut:,} also the end of their "
                    "ending."
                )
    result = Downstream(conditions=conditions, tasks=found)
    if (file := conditions.file(run.path)).is_file():
        result = Downstream(conditions=conditions, tasks={**_read(file).tasks, **found})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result.model_dump())
    return result


def _names(tasks: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for task in tasks for name in (PAPER_TASKS if task == "paper" else (task,))))


def lacking_tasks(folder: Path, tasks: Sequence[str]) -> list[str]:
    """Those of some tasks whose every row a run has not been measured on; refused as `read_downstream`."""
    found = read_downstream(folder)
    return [
        name for name in _names(tasks) if found is None or found.conditions.limit is not None or name not in found.tasks
    ]


def read_downstream(folder: Path) -> Downstream | None:
    """A run's newest results on whole tasks, or else its newest, or `None`; refused where some are damaged."""
    files = sorted((folder / EVALUATIONS).glob(f"*/{_FILE}"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    found = sorted(map(_read, files), key=lambda each: each.conditions.limit is not None)  # stable: newest first
    return found[0] if found else None


def _read(file: Path) -> Downstream:
    return Downstream.read(file, "remove it and measure the tasks again")


def _sources(
    names: Sequence[str], task_data: Path | None, folder: Path, known: Collection[str]
) -> dict[str, tuple[str, str]]:
    """What the harness is asked for of each task (its name, or a task file), and `"hub"` or the SHA-256 of its rows."""
    if unknown := [name for name in names if name not in known]:
        raise CoCoMixError(
            f"there is no task {unknown[0]!r}{' with a local task file' if task_data else ''}; choose among "
            f"{', '.join(PAPER_TASKS)}{'' if task_data else ' or the names of lm-evaluation-harness'}."
        )
    if task_data is None:
        return {name: (name, "hub") for name in names}
    found = {}
    for name in names:
        rows, file = (task_data / f"{name}.jsonl").resolve(), folder / f"{name}.yaml"
        if not rows.is_file():
            raise CoCoMixError(f"{rows} does not exist; --task-data needs a NAME.jsonl per task.")
        values: dict[str, Any] = {"include": str(TASKS_FOLDER / f"{name}.yaml"), "task": f"local_{name}"}
        values["dataset_kwargs"] = {"data_files": {"test": str(rows)}}
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        found[name] = str(file), hashlib.sha256(rows.read_bytes()).hexdigest()
    return found


def _evaluate_task(
    name: str, asked: str, source: str, model: "CountingModel", manager: Any, limit: int | None
) -> TaskResult:
    from lm_eval import simple_evaluate

    try:
        with redirect_stdout(sys.stderr):  # the harness prints; standard output is for results
            # No bootstrap: it would fork processes.
            settings = {"task_manager": manager, "limit": limit, "log_samples": False, "bootstrap_iters": 0}
            answer = simple_evaluate(model, tasks=[asked], **settings)
    except (OSError, ValueError, KeyError, ImportError) as error:
        origin = "the Hugging Face Hub" if source == "hub" else f"{name}.jsonl"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CoCoMixError(
            f"the task {name} cannot be run with data from {origin} ({reason}); give rows in its schema with "
            "--task-data, see cocomix/evaluation/tasks."
        ) from error
    rows = {task: int(counts["effective"]) for task, counts in answer["n-samples"].items()}
    parts = {task: _metrics(answer["results"][task], count) for task, count in rows.items()}
    alone = len(parts) == 1
    return TaskResult(
        source=source,
        examples=sum(rows.values()),
        requests=model.requests,
        truncated=model.truncated,
        endings_cut=model.endings_cut,
        batch_size=int(model.batch_size),
        metrics=next(iter(parts.values())) if alone else _metrics(answer["results"].get(name, {}), 0),
        parts={} if alone else parts,
    )


def _metrics(measured: dict[str, Any], examples: int) -> dict[str, float]:
    """Numbers of a task or a group, with standard errors of accuracies over so many rows."""
    metrics = {
        key.removesuffix(",none"): float(value)
        for key, value in measured.items()
        if key.endswith(",none") and isinstance(value, int | float)
    }
    for shown in {"acc", "acc_norm"} & metrics.keys() if examples > 1 else ():
        metrics[f"{shown}_stderr"] = math.sqrt(metrics[shown] * (1 - metrics[shown]) / (examples - 1))
    return metrics


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
    rows = [(str(name), *(_mean(group[column].tolist()) for column in numbers)) for name, group in groups]
    return Table(("run", *numbers.columns), rows, "Downstream tasks")


def _numbers(tasks: Sequence[str], validation: float, result: Downstream) -> dict[str, float]:
    """Validation perplexity, each task's number, and the paper's averages where all their tasks are among them."""
    row = {"validation, perplexity, lower is better": validation}
    averaged: dict[str, list[float]] = {"perplexity": [validation], "accuracy": []}  # as the paper does
    for name in tasks:
        value, kind = result.tasks[name].metrics[PAPER_TASKS[name].metric], PAPER_TASKS[name].kind
        shown = 100 * value if kind == "accuracy" else value
        row[f"{name}, {'%, higher' if kind == 'accuracy' else 'perplexity, lower'} is better"] = shown
        averaged[kind].append(shown)
    for kind, better in (("perplexity", "lower is better"), ("accuracy", "%, higher is better")):
        if all(name in tasks for name, one in PAPER_TASKS.items() if one.kind == kind):
            row[f"mean {kind}, {better}"] = sum(averaged[kind]) / len(averaged[kind])
    return row


def _mean(values: Sequence[float]) -> str:
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
