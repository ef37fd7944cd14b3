"""Running a plan: shared parts, then every run that is not there yet, then the report."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cocomix.artifacts import locked
from cocomix.evaluation import (
    Comparison,
    Run,
    compare,
    evaluate_run,
    evaluate_tasks,
    evaluations_of,
    recorded_sections,
    write_report,
)
from cocomix.evaluation.downstream import read_downstream
from cocomix.experiments.board import Board, Entry
from cocomix.experiments.plan import Job, LoadedPlan
from cocomix.experiments.stages import make_shared_parts
from cocomix.experiments.tuning import best_learning_rates, note_learning_rates
from cocomix.runtime.console import progress
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError, require_extra
from cocomix.training import train
from cocomix.training.recipe import load_recipe, save_recipe

__all__ = ["SweepResult", "prepare_sweep", "run_sweep"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        entries: every run of the plan.
        comparison: of all arms; `None` while a run is missing, so that no part is taken for the whole.
        report: the report page; likewise.
        learning_rates: what was tried and chosen, where the plan tunes them.
    """

    entries: tuple[Entry, ...]
    comparison: Comparison | None
    report: Path | None
    learning_rates: dict[str, Any]

    @property
    def missing(self) -> tuple[Entry, ...]:
        """Runs that are not finished; a try of a learning rate may fail."""
        return tuple(entry for entry in self.entries if entry.status != "finished" and not entry.is_try)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "complete": self.comparison is not None,
            "runs": [asdict(entry) for entry in self.entries],
            "missing": [f"{entry.arm} seed {entry.seed}" for entry in self.missing],
            "learning_rates": self.learning_rates,
            "report": None if self.report is None else str(self.report),
            "comparison": None if self.comparison is None else self.comparison.to_json(),
        }


def prepare_sweep(loaded: LoadedPlan) -> tuple[list[Job], Board]:
    """Check every recipe of a plan and make the shared parts.

    Returns:
        The runs, those that choose learning rates first; their board.

    Raises:
        BeingWritten: another process sweeps in this folder.
        CoCoMixError: a recipe is wrong, a part cannot be made, or the folder holds another plan's parts or runs.
    """
    require_extra("report", "matplotlib", "scipy", purpose="a sweep")
    tries = loaded.tries()
    jobs = [*tries, *loaded.jobs(best_learning_rates(tries))]
    for job in jobs:
        if job.folder.exists() and load_recipe(job.folder / "recipe.yaml") != job.recipe:
            raise CoCoMixError(
                f"{job.folder} was trained by another recipe than the plan's {job.arm!r}; remove it, or choose another "
                "--output."
            )
    with _alone(loaded):
        make_shared_parts(loaded, jobs)
    return jobs, Board(jobs)


def run_sweep(loaded: LoadedPlan, jobs: list[Job], board: Board, *, workers: int = 1) -> SweepResult:
    """Train and measure what is missing, and write the report when nothing is.

    Args:
        loaded: the plan.
        jobs: from `prepare_sweep`.
        board: likewise; kept up to date while it runs.
        workers: runs at once. More than one are processes of their own that share the cores evenly.

    Returns:
        The outcome; failed runs are in it, not raised, and do not stop the others.

    Raises:
        BeingWritten: another process sweeps in this folder.
    """
    with _alone(loaded):
        return _run_sweep(loaded, jobs, board, workers)


@contextmanager
def _alone(loaded: LoadedPlan) -> Iterator[None]:
    """Let one process at a time sweep in a folder."""
    try:
        loaded.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CoCoMixError(f"cannot write to {loaded.output}: {error.strerror}; name another --output.") from error
    with locked(loaded.output / "sweep.lock", str(loaded.output)):
        yield


def _run_sweep(loaded: LoadedPlan, jobs: list[Job], board: Board, workers: int) -> SweepResult:
    (loaded.output / "recipes").mkdir(exist_ok=True)

    def run(job: Job) -> None:
        done = job.folder.exists()
        board.mark(job, "running")
        save_recipe(job.recipe, _recipe_file(loaded, job))
        try:
            if workers == 1:
                _run_here(loaded, job)
            else:
                _run_in_process(loaded, job, workers)
        except Exception as error:  # whatever it was, the other runs go on
            reason = " ".join(str(error).split()) or type(error).__name__
            board.mark(job, "failed", reason)
            logger.warning(f"{job.arm} seed {job.seed} failed: {reason}")
        else:
            board.mark(job, "finished")
            if not done:
                logger.info(f"{job.arm} seed {job.seed} is finished")

    def run_all(jobs: Sequence[Job], advance: Callable[[int], None]) -> None:
        if workers == 1:
            for job in jobs:
                run(job)
                advance(1)
            return
        with ThreadPoolExecutor(max_workers=workers) as threads:
            try:
                for _ in threads.map(run, jobs):
                    advance(1)
            except KeyboardInterrupt:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    tries = [job for job in jobs if job.try_of is not None]
    with progress("sweep", len(jobs), "runs") as advance:
        run_all(tries, advance)
        rates = note_learning_rates(loaded, tries)
        chosen = best_learning_rates(tries)
        compared = loaded.jobs(chosen) if tries else jobs
        for job in compared:
            if tries and job.arm not in chosen:
                board.mark(job, "failed", "it could be trained at none of the learning rates")
        run_all([job for job in compared if not tries or job.arm in chosen], advance)
    result = SweepResult(tuple(board.entries()), None, None, rates)
    if result.missing:
        return result
    runs = [Run.open(job.folder) for job in compared]
    comparison = compare(runs, loaded.plan.baseline)
    return replace(result, comparison=comparison, report=_report(loaded, comparison, runs))


def _run_here(loaded: LoadedPlan, job: Job) -> None:
    if not job.folder.exists():
        train(job.recipe, job.folder)
    if job.try_of is not None:
        return
    run = Run.open(job.folder)
    if not evaluations_of(run):
        evaluate_run(run, device=default_device())
    if tasks := _missing_tasks(loaded, run):
        evaluate_tasks(run, tasks, device=default_device())


def _run_in_process(loaded: LoadedPlan, job: Job, workers: int) -> None:
    """The same by the command line, each verb a process with its share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}

    def verb(*arguments: str | Path) -> None:
        command = [sys.executable, "-m", "cocomix", *map(str, arguments), "--quiet"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            lines = ended.stderr.strip().splitlines() or [f"its process ended with status {ended.returncode}"]
            raise CoCoMixError(lines[-1].removeprefix("error: "))

    if not job.folder.exists():
        verb("train", _recipe_file(loaded, job), "--output", job.folder)
    if job.try_of is not None:
        return
    if not evaluations_of(Run.open(job.folder)):
        verb("eval", job.folder)
    if tasks := _missing_tasks(loaded, Run.open(job.folder)):
        verb("eval", job.folder, "--tasks", ",".join(tasks))


def _missing_tasks(loaded: LoadedPlan, run: Run) -> list[str]:
    return [] if not loaded.plan.tasks or read_downstream(run.path) is not None else list(loaded.plan.tasks)


def _recipe_file(loaded: LoadedPlan, job: Job) -> Path:
    return loaded.output / "recipes" / f"{job.arm.replace(' ', '-')}-seed{job.seed}.yaml"


def _report(loaded: LoadedPlan, comparison: Comparison, runs: Sequence[Run]) -> Path:
    """Write the report in place of an earlier one: seeds or arms may have been added since."""
    folder = loaded.output / "report"
    shutil.rmtree(folder, ignore_errors=True)
    title = f"Sweep {loaded.path.stem}"
    return write_report(comparison, folder, title=title, sections=recorded_sections(runs))
