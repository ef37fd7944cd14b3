"""Running a plan: what its arms share, every run that is not there yet, the report when none is missing.

The sweep's folder is its whole state. A part or run that is there is kept; one that was stopped goes on from its last
checkpoint; `cocomix runs FOLDER` shows them meanwhile.
"""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cocomix.artifacts import locked, read_json, write_json
from cocomix.concepts import FitSettings, LabellerConfig, LoadedTeachers, TeacherLabellerConfig, reads_hidden
from cocomix.data import prepare
from cocomix.evaluation import (
    Comparison,
    Run,
    Section,
    compare,
    evaluate_run,
    evaluate_tasks,
    evaluations_of,
    write_report,
)
from cocomix.evaluation.alike import refuse_unlike_recipes
from cocomix.evaluation.downstream import lacking_tasks
from cocomix.experiments.sweep_plan import Job, LoadedPlan, needed_blocks, remembered, within_budget
from cocomix.labelling import TeacherProbabilities, distill_data, fit_on_data, label_and_distill, label_data
from cocomix.runtime.console import progress
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError, require_extra
from cocomix.training import train
from cocomix.training.recipe import load_recipe, save_recipe

logger = logging.getLogger(__name__)

_MADE_OF = {
    "prepare": ("data",),
    "teacher": ("teacher", "dictionary", "labels", "probabilities*"),
    "dictionary": ("dictionary", "labels"),
    "probabilities_top_k": ("probabilities*",),
}
"""Fields of a plan, and what of the sweep's folder is made of each: as long as nothing is, it may still be changed."""

TRIED = "learning_rates.json"
"""File of a sweep's folder with the learning rates that were tried and chosen."""


@dataclass
class SweepResult:
    """What a sweep came to.

    Attributes:
        jobs: every run of the plan, those that choose learning rates first.
        errors: why a run is missing, by arm and seed.
        learning_rates: what was tried and chosen, where the plan tunes them.
        comparison: of all arms; `None` while a run is missing, so that no part is taken for the whole.
        report: the report page; likewise.
    """

    jobs: list[Job]
    errors: dict[tuple[str, int], str] = field(default_factory=dict)
    learning_rates: dict[str, Any] = field(default_factory=dict)
    comparison: Comparison | None = None
    report: Path | None = None

    @property
    def missing(self) -> list[str]:
        """Runs that are not finished or not measured; a try of a learning rate may fail."""
        return [f"{job.arm} seed {job.seed}" for job in self.jobs if job.try_of is None and not self.is_done(job)]

    def is_done(self, job: Job) -> bool:
        """Whether a run is there and nothing went wrong with it."""
        return job.folder.exists() and (job.arm, job.seed) not in self.errors

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "complete": self.comparison is not None,
            "runs": [
                {
                    "arm": job.arm,
                    "seed": job.seed,
                    "status": "finished" if self.is_done(job) else "failed",
                    "loss": final_loss(job),
                    "error": self.errors.get((job.arm, job.seed)),
                    "is_try": job.try_of is not None,
                }
                for job in self.jobs
            ],
            "missing": self.missing,
            "learning_rates": self.learning_rates,
            "report": None if self.report is None else str(self.report),
            "comparison": None if self.comparison is None else self.comparison.to_json(),
        }


def final_loss(job: Job) -> float | None:
    """The validation loss at the end of a finished run's training, nats per token."""
    return read_json(job.folder / "manifest.json")["final"]["eval_loss"] if job.folder.exists() else None


def run_sweep(
    loaded: LoadedPlan,
    *,
    workers: int = 1,
    budget: float | None = None,
    title: str | None = None,
    more: Callable[[Comparison, Sequence[Run]], Sequence[Section]] = lambda comparison, runs: (),
) -> SweepResult:
    """Make, train and measure what is missing, and write the report when nothing is.

    Args:
        workers: runs at once. More than one are processes of their own that share the cores evenly.
        budget: seconds that all of it may take, about: all runs get shorter by the same share (see `within_budget`).
        more: makes further sections for it.

    Returns:
        The outcome; failed runs are in it, not raised, and do not stop the others.

    Raises:
        BeingWritten: another process sweeps in this folder.
        CoCoMixError: a recipe is wrong, a shared part cannot be made, or the folder holds another plan's parts or runs.
    """
    require_extra("report", "jinja2", "matplotlib", "scipy", "statsmodels", purpose="a sweep")
    if loaded.plan.tasks:
        require_extra("eval", "lm_eval", purpose="a sweep that measures tasks")
    began = time.monotonic()
    loaded = remembered(loaded, budget)
    result = SweepResult(_jobs(loaded))
    try:
        loaded.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CoCoMixError(f"cannot write to {loaded.output}: {error.strerror}; name another --output.") from error
    with locked(loaded.output / "sweep.lock", str(loaded.output)):
        _make_shared_parts(loaded, result.jobs)
        if budget is not None:
            loaded = within_budget(loaded, budget, budget - (time.monotonic() - began))
            result.jobs = _jobs(loaded)
        tries = loaded.tries()
        kept = sum(job.folder.exists() for job in result.jobs)
        with progress("sweep", len(result.jobs), "runs", done=kept) as advance:
            _run_all(loaded, tries, result.errors, workers, advance)
            result.learning_rates, chosen = _note_learning_rates(loaded, tries), _best(tries)
            compared = loaded.jobs(chosen)
            _refuse_other_recipes(compared)  # a wider grid may have chosen another learning rate
            result.jobs = [*tries, *compared]
            untuned = [job for job in compared if tries and job.arm not in chosen]
            for job in untuned:
                result.errors[job.arm, job.seed] = "it could be trained at none of the learning rates"
            _run_all(loaded, [job for job in compared if job not in untuned], result.errors, workers, advance)
        if not result.missing:
            runs = [Run.open(job.folder) for job in compared]
            result.comparison = compare(runs, loaded.plan.baseline, loaded.plan.vary)
            shutil.rmtree(loaded.output / "report", ignore_errors=True)  # seeds or arms may have been added since
            sections = more(result.comparison, runs)
            title = title or f"Sweep {loaded.path.stem}"
            result.report = write_report(result.comparison, loaded.output / "report", title=title, sections=sections)
    return result


def _jobs(loaded: LoadedPlan) -> list[Job]:
    """Every run, tries first, refused where arms differ in more than an arm may or a run is of another recipe."""
    tries = loaded.tries()
    jobs = [*tries, *loaded.jobs(_best(tries))]
    refuse_unlike_recipes({job.arm: job.recipe for job in jobs if job.try_of is None}, loaded.plan.vary)
    _refuse_other_recipes(jobs)
    return jobs


def _refuse_other_recipes(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.folder.exists() and load_recipe(job.folder / "recipe.yaml") != job.recipe:
            raise CoCoMixError(
                f"{job.folder} was trained by another recipe than the plan's {job.arm!r}; remove it, or choose another "
                "--output."
            )


def _make_shared_parts(loaded: LoadedPlan, jobs: Sequence[Job]) -> None:
    """Data, teacher, probabilities, dictionary and labels, each made once, where they are missing."""
    plan, output, teacher = loaded.plan, loaded.output, loaded.teacher
    parts = plan.model_dump(mode="json", include={"prepare", "teacher", "dictionary", "probabilities_top_k"})
    trained = plan.teacher is not None and plan.teacher.recipe is not None
    if trained:
        parts["teacher"]["recipe"] = loaded.teacher_recipe().model_dump(mode="json")
    found = read_json(output / "shared.json") if (output / "shared.json").exists() else parts
    differing = [name for name, value in parts.items() if found.get(name) != value]
    if differing := [name for name in differing if any(any(output.glob(made)) for made in _MADE_OF[name])]:
        raise CoCoMixError(
            f"{output} holds a sweep with another {', '.join(differing)}; remove it or choose another --output."
        )
    write_json(output / "shared.json", parts)
    if plan.prepare is not None and not (output / "data").exists():
        logger.info("data")
        prepare(plan.prepare, output / "data")
    if plan.teacher is None or teacher is None:
        if plan.dictionary is not None and (missing := [job.arm for _, job in _missing_labels(jobs).values()]):
            raise CoCoMixError(
                f"{loaded.path}: making labels of the arm {missing[0]!r} by dictionary: needs teacher:, too; give both "
                "or leave both to the recipes."
            )
        return
    if trained and not Path(teacher.model).exists():
        logger.info("teacher")
        train(loaded.teacher_recipe(), Path(teacher.model))
    data = jobs[0].recipe.data
    if not isinstance(data, Path):
        raise CoCoMixError("a sweep makes dictionary and labels of one prepared corpus; let data name one folder.")
    teachers = LoadedTeachers()  # released when the shared parts are made, before students are trained
    probabilities, top_k, dtype = _missing_probabilities(jobs), plan.probabilities_top_k, plan.teacher.dtype
    if plan.dictionary is not None and loaded.dictionary is not None:
        force, fitted = plan.dictionary.force, Path(loaded.dictionary["path"])
        if plan.dictionary.path is None and not fitted.exists():
            logger.info("dictionary")
            settings = FitSettings.model_validate(plan.dictionary.model_dump(include=set(FitSettings.model_fields)))
            fit_on_data(data, teacher, fitted, settings, teachers=teachers)
        for path, (config, job) in _missing_labels(jobs).items():
            blocks = needed_blocks(job.recipe, job.recipe.model.concept_loss_weight)
            of_teacher = isinstance(config, TeacherLabellerConfig) and config.dtype == dtype and reads_hidden(config)
            if of_teacher and blocks in probabilities:  # one pass of the teacher makes both
                logger.info(f"labels and probabilities: {path.name}, first for {job.arm}")
                beside = probabilities.pop(blocks)
                label_and_distill(
                    data, config, path, beside, force=force, top_k=top_k, blocks=blocks, teachers=teachers
                )
            else:
                logger.info(f"labels: {path.name}, first for {job.arm}")
                label_data(data, config, path, force=force, blocks=blocks, teachers=teachers)
    for blocks, path in probabilities.items():
        logger.info(f"probabilities: {path.name}")
        distill_data(data, teacher, path, top_k=top_k, dtype=dtype, blocks=blocks, teachers=teachers)


def _missing_labels(jobs: Sequence[Job]) -> dict[Path, tuple[LabellerConfig, Job]]:
    """How labels that are not there are to be made, by their place, and the first job that reads them."""
    missing: dict[Path, tuple[LabellerConfig, Job]] = {}
    for job in jobs:
        labels = job.recipe.labels
        if labels is not None and labels.path is not None and labels.labeller is not None and not labels.path.exists():
            missing.setdefault(labels.path, (labels.labeller, job))
    return missing


def _missing_probabilities(jobs: Sequence[Job]) -> dict[int | None, Path]:
    """Where arms look for probabilities of the teacher that are not there, by the training blocks that they need.

    Those that are there and that runs will read are refused where they were made by an earlier algorithm.
    """
    missing: dict[int | None, Path] = {}
    for job in jobs:
        distillation = job.recipe.distillation
        if distillation is None or not isinstance(path := distillation.targets, Path):
            continue
        if not path.exists():
            missing[needed_blocks(job.recipe, distillation.weight)] = path
        elif not job.folder.exists():
            TeacherProbabilities.made(path, {})
    return missing


def _run_all(
    loaded: LoadedPlan,
    jobs: Sequence[Job],
    errors: dict[tuple[str, int], str],
    workers: int,
    advance: Callable[[float], None],
) -> None:
    """Train and measure jobs, `workers` at once; what fails is noted and does not stop the others."""
    (loaded.output / "recipes").mkdir(exist_ok=True)
    running: set[subprocess.Popen[str]] = set()
    kept = {job.folder for job in jobs if job.folder.exists()}

    def attempt(job: Job) -> str | None:
        if not job.folder.exists():
            logger.info(f"{job.arm}, seed {job.seed}")
        try:
            save_recipe(job.recipe, _recipe_file(loaded, job))
            for words, here in _missing_steps(loaded, job):
                if workers == 1:  # here, so that Ctrl-C and SIGTERM reach the training
                    here()
                else:
                    _run_command(words, workers, running)
        except Exception as error:  # whatever it was
            return " ".join(str(error).split()) or type(error).__name__
        return None

    def outcomes() -> Iterator[tuple[Job, str | None]]:
        if workers == 1:
            yield from ((job, attempt(job)) for job in jobs)
            return
        with ThreadPoolExecutor(max_workers=workers) as threads:
            futures = {threads.submit(attempt, job): job for job in jobs}
            try:
                yield from ((futures[done], done.result()) for done in as_completed(futures))
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                for process in tuple(running):  # SIGTERM came to this process alone: theirs write checkpoints and end
                    process.terminate()
                raise

    for job, error in outcomes():
        advance(job.folder not in kept)
        if error is not None:
            errors[job.arm, job.seed] = error
            logger.warning(f"{job.arm} seed {job.seed} failed: {error}")
        else:
            logger.info(f"{job.arm} seed {job.seed}: {final_loss(job):.4f} nats per token")


def _missing_steps(loaded: LoadedPlan, job: Job) -> Iterator[tuple[list[str | Path], Callable[[], Any]]]:
    """What a job lacks, one after another: as words of a command line, and as a function for this process."""
    folder = job.folder
    if not folder.exists():
        yield ["train", _recipe_file(loaded, job), "--output", folder], lambda: train(job.recipe, folder)
    if job.try_of is not None:
        return
    run = Run.open(folder)
    if not evaluations_of(run):
        batch = int(job.recipe.training.get("per_device_eval_batch_size", 8))
        how = ["--batch-size", str(batch)]
        yield ["eval", folder, *how], lambda: evaluate_run(run, device=default_device(), batch_size=batch)
    if tasks := lacking_tasks(folder, loaded.plan.tasks):
        how = ["--tasks", ",".join(tasks)]
        yield ["eval", folder, *how], lambda: evaluate_tasks(run, tasks, device=default_device())


def _run_command(words: Sequence[str | Path], workers: int, running: set[subprocess.Popen[str]]) -> None:
    """Run a verb as a process with its share of the cores; `running` holds those at work."""
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, "-m", "cocomix", *map(str, words), "--quiet"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        running.add(process)
        _, told = process.communicate()
        running.discard(process)
    if process.returncode != 0:
        lines = told.strip().splitlines() or [f"its process ended with status {process.returncode}"]
        raise CoCoMixError(lines[-1].removeprefix("error: "))


def _recipe_file(loaded: LoadedPlan, job: Job) -> Path:
    return loaded.output / "recipes" / f"{job.arm.replace(' ', '-')}-seed{job.seed}.yaml"


def _losses(tries: Sequence[Job]) -> dict[str, dict[float, float | None]]:
    """The final loss of every try, by arm and learning rate; `None` of one that is not finished."""
    losses: dict[str, dict[float, float | None]] = {}
    for job in tries:
        losses.setdefault(job.try_of or job.arm, {})[job.learning_rate] = final_loss(job)
    return losses


def _best(tries: Sequence[Job]) -> dict[str, float]:
    """The learning rate of the least loss, by arm; arms of which no try is finished are left out."""
    best = {}
    for arm, losses in _losses(tries).items():
        if finished := {rate: loss for rate, loss in losses.items() if loss is not None}:
            best[arm] = min(finished, key=finished.__getitem__)
    return best


def _note_learning_rates(loaded: LoadedPlan, tries: Sequence[Job]) -> dict[str, Any]:
    """Write what was tried and chosen, by arm; a choice at the end of its grid is warned of."""
    chosen, noted = _best(tries), {}
    for arm, losses in _losses(tries).items():
        best, ends = chosen.get(arm), {max(losses): "largest", min(losses): "smallest"}
        if best in ends:
            logger.warning(f"{arm}: the best learning rate, {best:g}, is the {ends[best]} tried; widen learning_rates.")
        noted[arm] = {"losses": {f"{rate:g}": losses[rate] for rate in sorted(losses)}, "chosen": best}
    if noted:
        write_json(loaded.output / TRIED, noted)
    return noted
