"""Downstream tasks through lm-evaluation-harness, by the harness's names or from local JSONL files.

The local task files in `tasks/` ask the same questions and compute the same metrics as the harness's own; only where
the rows come from differs.
"""

import hashlib
import logging
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cocomix.artifacts import read_json, write_json
from cocomix.evaluation.inference import inference
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run

if TYPE_CHECKING:
    from cocomix.evaluation.harness import CountingModel

__all__ = [
    "DOWNSTREAM_FILE",
    "PAPER_TASKS",
    "TASKS_FOLDER",
    "Downstream",
    "HarnessConditions",
    "TaskMetric",
    "TaskResult",
    "evaluate_tasks",
    "read_downstream",
]

logger = logging.getLogger(__name__)

DOWNSTREAM_FILE = "downstream.json"
"""Name of the result within the run's folder."""

TASKS_FOLDER = Path(__file__).parent / "tasks"
"""The local task files; also for `lm_eval --include_path`, where each reads `NAME.jsonl` of the current folder."""


@dataclass(frozen=True)
class TaskMetric:
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


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HarnessConditions(_Part):
    """What must be equal for results to be compared.

    Attributes:
        harness: version of lm-evaluation-harness.
        context: tokens the model reads at once; a longer prompt loses its beginning.
        batch_size: requests per forward pass.
        dtype: precision of the matrix products.
        limit: rows used of each task; `None` = all.
    """

    harness: str
    context: int
    batch_size: int
    dtype: str
    limit: int | None


class TaskResult(_Part):
    """One task.

    Attributes:
        source: `"hub"`, or the SHA-256 of the local file.
        examples: rows used.
        requests: texts scored: an ending each, or a window each of a long text.
        truncated: requests whose prompt lost its beginning.
        endings_cut: requests whose ending alone exceeds the context.
        metrics: as the harness names them, e.g. `acc_norm`, and for accuracies `acc_norm_stderr` over the rows.
    """

    source: str
    examples: int
    requests: int
    truncated: int
    endings_cut: int
    metrics: dict[str, float]


class Downstream(_Part):
    """All tasks of one run under the same conditions."""

    format_version: Literal[1] = 1
    conditions: HarnessConditions
    tasks: dict[str, TaskResult]

    def summary(self) -> dict[str, Any]:
        """Every metric and what was cut, by name, for people."""
        shown: dict[str, Any] = dict(self.conditions)
        for name, task in self.tasks.items():
            metrics = ", ".join(f"{metric} {value:.4g}" for metric, value in task.metrics.items())
            shown[name] = f"{metrics}; {task.examples:,} rows, {task.truncated:,} of {task.requests:,} prompts cut"
        return shown

    def value(self, task: str) -> float | None:
        """The number that the paper's table shows: accuracy as a share of 1, or perplexity. `None` if not measured."""
        if task not in self.tasks:
            return None
        return self.tasks[task].metrics[PAPER_TASKS[task].metric]

    def average_accuracy(self) -> float | None:
        """Mean accuracy of the paper's five tasks; `None` unless all were measured."""
        return _mean([self.value(task) for task, shown in PAPER_TASKS.items() if shown.kind == "accuracy"])

    def average_perplexity(self, validation_perplexity: float) -> float | None:
        """Mean of validation, LAMBADA and WikiText perplexity, as in the paper; `None` unless both were measured."""
        shown = [self.value(task) for task, shown in PAPER_TASKS.items() if shown.kind == "perplexity"]
        return _mean([validation_perplexity, *shown])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


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
    """Measure a run on downstream tasks and write `downstream.json` in its folder.

    Tasks measured before under the same conditions are kept in the file; under other conditions they are dropped.

    Args:
        run: from `Run.open`.
        tasks: names of `PAPER_TASKS`, or without `task_data` any of the harness's names; `"paper"` = all seven.
        device: where to compute.
        task_data: folder with `NAME.jsonl` for each task; by default the harness fetches its data from the hub.
        batch_size: requests per forward pass.
        dtype: float32 (default), or a narrower type used through autocast.
        limit: use only the first rows of each task.

    Raises:
        CoCoMixError: the harness is not installed, a task is unknown, or its data cannot be read.
    """
    if find_spec("lm_eval") is None:
        raise CoCoMixError("downstream tasks need lm-evaluation-harness; install it with pip install 'cocomix[eval]'.")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise CoCoMixError(f"batch size {batch_size} and limit {limit} must be at least 1.")
    from lm_eval import __version__ as harness_version

    from cocomix.evaluation.harness import CountingModel

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names = list(dict.fromkeys(name for task in tasks for name in (PAPER_TASKS if task == "paper" else (task,))))
    model = run.model().to(device)
    conditions = HarnessConditions(
        harness=str(harness_version),
        context=int(model.config.max_position_embeddings),
        batch_size=batch_size,
        dtype=str(dtype).removeprefix("torch."),
        limit=limit,
    )
    found: dict[str, TaskResult] = {}
    with TemporaryDirectory() as folder, inference(model, device):
        definitions = _Definitions(names, task_data, Path(folder))
        for name in names:
            logger.info(f"{name}: scoring")
            wrapped = CountingModel(model, run.tokenizer(), batch_size=batch_size, dtype=dtype)
            found[name] = _evaluate_task(name, wrapped, definitions, limit)
            _warn_of_cuts(name, found[name], conditions.context)
    earlier = read_downstream(run.path)
    if earlier is not None and earlier.conditions == conditions:
        found = {**earlier.tasks, **found}
    result = Downstream(conditions=conditions, tasks=found)
    write_json(run.path / DOWNSTREAM_FILE, result.model_dump())
    return result


def read_downstream(folder: Path) -> Downstream | None:
    """Read a run's results; `None` where there are none.

    Raises:
        CoCoMixError: the file is damaged.
    """
    path = folder / DOWNSTREAM_FILE
    if not path.is_file():
        return None
    try:
        return Downstream.model_validate(read_json(path))
    except ValidationError as error:
        raise CoCoMixError(f"{path} is damaged ({error.errors()[0]['msg']}); measure the tasks again.") from error


class _Definitions:
    """Where the harness finds each task and its rows, checked before anything is computed.

    Args:
        names: of the tasks.
        task_data: folder of the local rows; `None` = the harness's own tasks.
        folder: where to put a task file that joins our questions with the user's rows.
    """

    def __init__(self, names: Sequence[str], task_data: Path | None, folder: Path) -> None:
        from lm_eval.tasks import TaskManager

        self.manager = TaskManager(include_defaults=task_data is None)
        self.files: dict[str, Path] = {}
        self._folder = folder
        known = set(self.manager.all_tasks) if task_data is None else set(PAPER_TASKS)
        for name in names:
            if name not in known:
                raise CoCoMixError(
                    f"there is no task {name!r}{' with a local task file' if task_data else ''}; choose among "
                    f"{', '.join(PAPER_TASKS)}{'' if task_data else ' or the names of lm-evaluation-harness'}."
                )
            if task_data is not None:
                self.files[name] = (task_data / f"{name}.jsonl").resolve()
                if not self.files[name].is_file():
                    raise CoCoMixError(f"{self.files[name]} does not exist; --task-data needs a NAME.jsonl per task.")

    def of(self, name: str) -> str:
        """What the harness is asked for: a task's name, or a task file."""
        if name not in self.files:
            return name
        file = self._folder / f"{name}.yaml"
        rows = {"data_files": {"test": str(self.files[name])}}
        values = {"include": str(TASKS_FOLDER / f"{name}.yaml"), "task": f"local_{name}", "dataset_kwargs": rows}
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return str(file)

    def source(self, name: str) -> str:
        """`"hub"`, or the local file's SHA-256."""
        return hashlib.sha256(self.files[name].read_bytes()).hexdigest() if name in self.files else "hub"


def _evaluate_task(name: str, model: "CountingModel", definitions: _Definitions, limit: int | None) -> TaskResult:
    from lm_eval import simple_evaluate

    try:
        with redirect_stdout(sys.stderr):  # the harness prints; standard output is for results
            answer = simple_evaluate(
                model,
                tasks=[definitions.of(name)],
                task_manager=definitions.manager,
                limit=limit,
                log_samples=False,
                bootstrap_iters=0,  # it would fork processes
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        origin = definitions.files.get(name, "the Hugging Face Hub")
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CoCoMixError(
            f"the task {name} cannot be run with data from {origin} ({reason}); give rows in its schema with "
            "--task-data, see cocomix/evaluation/tasks."
        ) from error
    (measured,) = answer["results"].values()
    (counts,) = answer["n-samples"].values()
    metrics = {
        key.removesuffix(",none"): float(value)
        for key, value in measured.items()
        if key.endswith(",none") and isinstance(value, int | float)
    }
    examples = int(counts["effective"])
    for shown in {"acc", "acc_norm"} & metrics.keys() if examples > 1 else ():
        metrics[f"{shown}_stderr"] = math.sqrt(metrics[shown] * (1 - metrics[shown]) / (examples - 1))
    return TaskResult(
        source=definitions.source(name),
        examples=examples,
        requests=model.requests,
        truncated=model.truncated,
        endings_cut=model.endings_cut,
        metrics=metrics,
    )


def _warn_of_cuts(name: str, result: TaskResult, context: int) -> None:
    if result.truncated:
        logger.warning(
            f"{name}: {result.truncated:,} of {result.requests:,} prompts were longer than the context of {context} "
            f"tokens and lost their beginning, {result.endings_cut:,} also the end of their ending."
        )
