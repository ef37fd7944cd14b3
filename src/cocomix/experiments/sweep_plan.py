"""A sweep's plan: which arms and seeds, from which recipes, on which shared data, teacher, dictionary and labels.

    baseline: ntp
    seeds: [0, 1, 2]
    common: {tokens: 1_000_000}          # laid over every arm's recipe
    arms:
      ntp: corpus_ntp.yaml               # a recipe, its path relative to the plan
      cocomix: {base: corpus_cocomix.yaml, seeds: [0], model: {concept_loss_weight: 0.2}}
    prepare: {sources: [docs:], vocab_size: 4096, block_size: 128}      # what `cocomix prepare` takes
    teacher: {layer: 1, recipe: {base: corpus_teacher.yaml}}            # trained here; or {layer: 5, model: gpt2}
    dictionary: {num_concepts: 2048}     # what `cocomix sae` takes; or {path: FOLDER or release}
    tune: {learning_rates: [1.0e-3, 2.0e-3, 4.0e-3], tokens: 500_000}     # for every arm, before its runs
    fast: {common: {tokens: 4096}}       # laid over the plan by --fast
    base: other_plan.yaml                # of the same folder: this file's fields are laid over its

A part that is left out (prepare, teacher, dictionary) is taken from the arms' own recipes. An arm with `model:
{pretrained: teacher}` goes on from the weights of the plan's teacher.

Within a budget of seconds every run gets the same share of its tokens, by the speed of each arm on this machine:
learning rates fall to their end in the shorter runs too, which runs that are broken off would not show.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from cocomix.artifacts import fingerprint_json, read_json, write_json
from cocomix.concepts import AttributionConfig, FitSettings, LabellerConfig, TeacherConfig
from cocomix.data import PrepareSettings
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Section, describe_validation_error
from cocomix.training.objectives import Schedule
from cocomix.training.recipe import RecipeVersion, RunConfig, load_recipe
from cocomix.training.recipe_cost import seconds_per_token
from cocomix.training.recipe_file import merged, recipe_values

logger = logging.getLogger(__name__)

TEACHER = "teacher"
"""In an arm's `model.pretrained`: the plan's teacher."""
_DEFAULT = AttributionConfig()
_STEPS = 10**6  # of a run, to see whether a schedule ends early


class TeacherPlan(Section):
    """The teacher of all arms: a model that exists, or a recipe by which the sweep trains it."""

    layer: int = Field(ge=0)
    """0-based index of the block whose output gives the concepts."""
    model: str | None = None
    """Hub name, folder or GGUF file."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """What it runs in for labels that name no `dtype` and for probabilities; `auto` as `labels.dtype`."""
    recipe: str | dict[str, Any] | None = None
    """As for an arm."""

    @model_validator(mode="after")
    def _one_source(self) -> "TeacherPlan":
        if (self.model is None) == (self.recipe is None):
            raise ValueError("give either model or recipe")
        return self


class DictionaryPlan(FitSettings):
    """The dictionary of all arms: one that exists, or how to fit it (all other fields are `cocomix sae`'s)."""

    path: str | None = None
    """SAELens release or folder."""
    sae_id: str | None = None
    """Which autoencoder of the release."""
    fingerprint: str | None = None
    """Pins it, as `labels.dictionary.fingerprint` of a recipe."""
    force: bool = False
    """Use the dictionary although it describes the layer badly, as after `--fast`."""


class TunePlan(Section):
    """Every arm's learning rate: that of the least validation loss after short runs."""

    learning_rates: tuple[float, ...] = Field(min_length=2)
    """Tried for every arm that names none itself."""
    tokens: int = Field(ge=1)
    """Training tokens of a try."""
    seed: int | None = None
    """Of the tries; by default the first of the plan's seeds. A folder that holds tries goes on with theirs."""


class SweepPlan(Section):
    """A plan as its file gives it. Paths of recipes are relative to the file."""

    version: RecipeVersion = 1
    """Of the format of plans and recipes."""
    baseline: str
    """The arm that the others are measured against."""
    arms: dict[str, str | dict[str, Any]]
    """Name → a recipe's path, or a recipe with `base:` and, beside its fields, `seeds:` and `learning_rates:`."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of every arm that names none itself."""
    common: dict[str, Any] = Field(default_factory=dict)
    """Fields of the recipe that all arms share (and a teacher trained here): laid over the arm's file, under what the
    plan says of the arm."""
    prepare: PrepareSettings | None = None
    """Makes the data in the sweep's folder."""
    teacher: TeacherPlan | None = None
    """Shared by labels, distillation and hidden states."""
    dictionary: DictionaryPlan | None = None
    """Shared by all labels."""
    tune: TunePlan | None = None
    """Chooses the arms' learning rates; by default they are the recipes'."""
    probabilities_top_k: int = Field(default=64, ge=1)
    """Probabilities kept where an arm is distilled from stored ones."""
    tasks: tuple[str, ...] = ()
    """Downstream tasks to measure every run on."""
    vary: tuple[str, ...] = ()
    """Dotted recipe fields that the comparison is about, beside those that are an arm's own, e.g. `training.optim`."""
    fast: dict[str, Any] = Field(default_factory=dict)
    """Laid over the plan by `--fast`: sizes at which every arm runs for a few steps."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepPlan":
        if len(self.arms) < 2:
            raise ValueError("a sweep compares arms, and there is one; add another, or train it by `cocomix train`")
        if self.baseline not in self.arms:
            raise ValueError(f"baseline {self.baseline!r} is no arm; the arms are {', '.join(self.arms)}")
        if self.dictionary is not None and self.dictionary.path is None and self.teacher is None:
            raise ValueError("a dictionary cannot be fitted without teacher:")
        for name in self.arms:
            if not name or name != name.strip(".") or not all(part.isalnum() or part in "_-.+" for part in name):
                raise ValueError(f"the arm {name!r} becomes a folder; use letters, digits, and _ - . + in its name")
        return self


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    arm: str
    seed: int
    folder: Path
    recipe: RunConfig  # complete, with data, labels, teacher, name and seed
    try_of: str | None = None  # the arm whose learning rate it helps to choose; `None` for a run that is compared

    @property
    def learning_rate(self) -> float:
        """The peak learning rate its recipe names."""
        return float(self.recipe.training["learning_rate"])


@dataclass(frozen=True)
class LoadedPlan:
    """A plan with its place and the folder it writes."""

    plan: SweepPlan  # the plan, with `fast` laid over it where asked for
    path: Path
    output: Path  # the sweep's folder
    share: float = 1.0  # of their tokens that runs get, tries too

    @property
    def teacher(self) -> TeacherConfig | None:
        """The teacher that is or will be there."""
        plan = self.plan.teacher
        if plan is None:
            return None
        return TeacherConfig(model=plan.model or str(self.output / "teacher"), layer=plan.layer, revision=plan.revision)

    @property
    def dictionary(self) -> dict[str, Any] | None:
        """What recipes say of the dictionary that is or will be there."""
        plan = self.plan.dictionary
        if plan is None:
            return None
        path = plan.path or str(self.output / "dictionary")
        return {"path": path, "sae_id": plan.sae_id, "fingerprint": plan.fingerprint}

    def teacher_recipe(self) -> RunConfig:
        """How to train the teacher."""
        assert self.plan.teacher is not None
        assert self.plan.teacher.recipe is not None
        file, values, _ = self._arm(self.plan.teacher.recipe)
        return self._recipe("teacher", file, values, {"name": "teacher", "labels": None})

    def tries(self) -> list[Job]:
        """The runs by which `tune` chooses learning rates; none without it. Refuses as `jobs`."""
        if (tune := self.plan.tune) is None:
            return []
        jobs, seed = [], tune.seed
        if seed is None:
            tried = next((self.output / "tuning").glob("*/*/recipe.yaml"), None)
            seed = next(iter(self.plan.seeds), 0) if tried is None else int(load_recipe(tried).training["seed"])
        for name, value in self.plan.arms.items():
            rates = tune.learning_rates if isinstance(value, str) else value.get("learning_rates", tune.learning_rates)
            for rate in map(float, rates):
                recipe = self._complete(name, seed, rate, tokens=tune.tokens)
                folder = self.output / "tuning" / name / f"{rate:g}"
                jobs.append(Job(f"{name} {rate:g}", seed, folder, recipe, name))
        return jobs

    def jobs(self, learning_rates: Mapping[str, float] | None = None) -> list[Job]:
        """Every run, seed by seed, so that all arms have a result before any has its second; with `learning_rates` by
        arm that `tune` chose. Refused where a recipe is missing or wrong; the arm is named.
        """
        jobs, seeds = [], {name: self._arm(value)[2] for name, value in self.plan.arms.items()}
        for rank in range(max(map(len, seeds.values()))):
            for name in (arm for arm in self.plan.arms if rank < len(seeds[arm])):
                recipe = self._complete(name, seeds[name][rank], (learning_rates or {}).get(name))
                folder = self.output / "runs" / name / f"seed{seeds[name][rank]}"
                jobs.append(Job(name, seeds[name][rank], folder, recipe))
        return jobs

    def _arm(self, value: str | Mapping[str, Any]) -> tuple[Path, dict[str, Any], tuple[int, ...]]:
        """An arm's file, what the plan lays over it, and its seeds."""
        values = {"base": value} if isinstance(value, str) else dict(value)
        if not isinstance(values.get("base"), str):
            raise CoCoMixError(f"{self.path}: an arm is a recipe's path, or fields with base: RECIPE; got {value!r}.")
        file = self.path.parent / values.pop("base")
        seeds = values.pop("seeds", self.plan.seeds)
        values.pop("learning_rates", None)
        if not isinstance(seeds, Sequence) or not seeds or len(set(seeds)) < len(seeds):
            raise CoCoMixError(f"{self.path}: seeds must be a list without repetitions, not {seeds!r}.")
        return file, values, tuple(int(seed) for seed in seeds)

    def _complete(self, name: str, seed: int, learning_rate: float | None, tokens: int | None = None) -> RunConfig:
        """The arm's recipe, pointed at what the sweep makes."""
        file, values, _ = self._arm(self.plan.arms[name])
        training = {"seed": seed} | ({} if learning_rate is None else {"learning_rate": float(learning_rate)})
        changes: dict[str, Any] = {"name": name, "training": training} | ({} if tokens is None else {"tokens": tokens})
        teacher = None if self.teacher is None else self.teacher.model_dump(mode="json", exclude_unset=True)
        if teacher is not None:
            changes |= {"teacher": teacher, "model": {"teacher_hidden_size": None}}
        plain = self._recipe(name, file, values, changes)
        if self.share < 1.0 and plain.tokens is not None:
            changes["tokens"] = max(1, round(self.share * plain.tokens))
        if plain.model.pretrained == TEACHER:
            if self.teacher is None:
                raise CoCoMixError(
                    f"{self.path}: the arm {name!r} goes on from pretrained: {TEACHER}; the plan needs teacher:."
                )
            changes["model"] |= {"pretrained": self.teacher.model, "revision": self.teacher.revision}
        if not plain.has_concepts:
            changes["labels"] = None
        elif plain.labels is not None and self.dictionary is not None:
            made = plain.labels.labeller or _DEFAULT
            if self.plan.teacher is not None and "dtype" in type(made).model_fields.keys() - made.model_fields_set:
                made = made.model_copy(update={"dtype": self.plan.teacher.dtype})
            labels, shared = made.model_dump(mode="json"), {"dictionary": self.dictionary, "teacher": teacher}
            labels |= {part: value for part, value in shared.items() if part in labels and value is not None}
            folder = label_folder(self.output, made, needed_blocks(plain, plain.model.concept_loss_weight))
            changes["labels"] = {**labels, "path": str(folder) if plain.label_folders else None}
        if self.plan.teacher is not None and plain.distillation and isinstance(plain.distillation.targets, Path):
            blocks = needed_blocks(plain, plain.distillation.weight)
            place = "probabilities" if blocks is None else f"probabilities-{blocks}"
            changes["distillation"] = {"targets": str(self.output / place)}
        return self._recipe(name, file, values, changes)

    def _recipe(self, name: str, file: Path, values: Mapping[str, Any], changes: dict[str, Any]) -> RunConfig:
        """A recipe file, under it what the plan says of all arms and of this one, and last what the sweep makes."""
        if self.plan.prepare is not None:
            changes = {**changes, "data": str(self.output / "data")}
        try:
            found = merged(merged(recipe_values(file), self.plan.common), values)
            replaced = {"data", "labels", "teacher"} & changes.keys()  # as a whole, not field by field
            return RunConfig.model_validate(merged({n: v for n, v in found.items() if n not in replaced}, changes))
        except ValidationError as error:
            reason = describe_validation_error(error, RunConfig)
        except CoCoMixError as error:
            reason = str(error).rstrip(".")
        raise CoCoMixError(f"{self.path}: the arm {name!r} (from {file}): {reason}.")


def load_plan(path: Path, output: Path | None = None, *, fast: bool = False) -> LoadedPlan:
    """Read a plan; refused where it, or the plan that its `base:` names, is missing or no plan, an arm's name stands
    twice, or a field is unknown or wrong.

    Args:
        output: the sweep's folder; by default `sweeps/NAME`, with `-fast` at its end for `fast`.
        fast: lay the plan's `fast:` over it.
    """
    values = recipe_values(path)
    if "arms" not in values:
        raise CoCoMixError(f"{path} has no arms:, so it is no sweep's plan; give a recipe to `cocomix train`.")
    if fast:
        if not values.get("fast"):
            raise CoCoMixError(f"{path} has no fast: section, so --fast does not know what to leave out.")
        values = merged(values, values["fast"])
    try:
        plan = SweepPlan.model_validate(values)
    except ValidationError as error:
        raise CoCoMixError(f"{path}: {describe_validation_error(error, SweepPlan)}.") from None
    if output is None:
        output = Path("sweeps") / f"{path.stem}{'-fast' if fast else ''}"
    return LoadedPlan(plan, path, output.resolve())


def needed_blocks(recipe: RunConfig, weight: Schedule) -> int | None:
    """How many of the first training blocks a recipe needs labels or probabilities of, by the weight of their loss: all
    (`None`), unless it ends before the run does. Where `first_blocks` is too few, the run is refused before it begins.
    """
    return recipe.first_blocks if weight.steps(_STEPS) < _STEPS else None


def label_folder(output: Path, made: LabellerConfig, blocks: int | None = None) -> Path:
    """Where labels that are made so go: arms that choose labels alike share them, whatever their recipes' teacher."""
    values, default = (each.model_dump(mode="json", exclude={"teacher", "dictionary"}) for each in (made, _DEFAULT))
    name = "default" if values == default else fingerprint_json(values)[:12]
    return output / "labels" / (name if blocks is None else f"{name}-{blocks}")


_FILE = "budget.json"
_MEASURING = 0.05  # share of the budget for timing steps, and the most seconds an arm gets of it
_MOST_SECONDS = 10.0
_TRAINING = 0.75  # share of what is left then; evaluations, checkpoints and the report take the rest


def remembered(loaded: LoadedPlan, budget: float | None) -> LoadedPlan:
    """The plan with the shorter runs that its folder began with; refused with another budget than the folder's."""
    file = loaded.output / _FILE
    if not file.exists():
        if budget is not None and (loaded.output / "runs").exists():
            raise CoCoMixError(f"{loaded.output} holds runs without a budget already; choose another --output.")
        return loaded
    found = read_json(file)
    if budget not in (None, found["seconds"]):
        raise CoCoMixError(
            f"{loaded.output} holds a sweep for {found['seconds']:g} s, not {budget:g} s; choose another --output."
        )
    return replace(loaded, share=found["share"])


def within_budget(loaded: LoadedPlan, budget: float, left: float) -> LoadedPlan:
    """The plan with runs so short that they take about the seconds that are `left` of the `budget`; its data,
    dictionary and labels are there. Refused where an arm names no `tokens` or cannot be timed, or no time is left.
    """
    if (loaded.output / _FILE).exists():
        return loaded
    if left <= 0:
        raise CoCoMixError(
            f"data, teacher and labels have taken all of the {budget:g} s; they are kept: give the command again."
        )
    began, arms = time.monotonic(), {job.arm: job for job in loaded.jobs()}
    seconds, speeds = min(_MOST_SECONDS, _MEASURING * left / len(arms)), dict[str, float]()
    for name, job in arms.items():
        if job.recipe.tokens is None:
            raise CoCoMixError(f"the arm {name!r} names no tokens:, which a budget shortens; give it some.")
        speed = seconds_per_token(job.recipe, seconds)
        if isinstance(speed, str):
            raise CoCoMixError(f"the arm {name!r} cannot be timed: {speed}; sweep without --budget.")
        speeds[name] = speed
    jobs = (*loaded.tries(), *loaded.jobs())
    needed = sum((job.recipe.tokens or 0) * speeds[job.try_of or job.arm] for job in jobs)
    left = max(left - (time.monotonic() - began), 1.0)
    share = min(1.0, _rounded(_TRAINING * left / needed))
    write_json(loaded.output / _FILE, {"seconds": budget, "share": share, "seconds_per_token": speeds})
    logger.info(f"every run gets {share:.2%} of its tokens, so that the sweep takes about {budget:,.0f} s")
    return replace(loaded, share=share)


def _rounded(share: float) -> float:
    """Down to two digits, so that a recipe's tokens are numbers that one can read."""
    place = 10.0 ** (math.floor(math.log10(share)) - 1)
    return math.floor(share / place) * place
