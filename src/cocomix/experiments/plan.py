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

A part that is left out (prepare, teacher, dictionary) is taken from the arms' own recipes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from cocomix.artifacts import fingerprint_json
from cocomix.concepts import AttributionConfig, FitSettings, LabellerConfig
from cocomix.data import PrepareSettings
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Section, describe_validation_error
from cocomix.runtime.yaml_text import parse_yaml
from cocomix.training.recipe import RecipeVersion, RunConfig, load_recipe
from cocomix.training.recipe_file import merged
from cocomix.training.recipes_folder import missing_recipe

__all__ = ["DictionaryPlan", "Job", "LoadedPlan", "SweepPlan", "TeacherPlan", "TunePlan", "label_folder", "load_plan"]


_DEFAULT = AttributionConfig()


class TeacherPlan(Section):
    """The teacher of all arms: a model that exists, or a recipe by which the sweep trains it."""

    layer: int = Field(ge=0)
    """0-based index of the block whose output gives the concepts."""
    model: str | None = None
    """Hub name, folder or GGUF file."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
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
    seed: int = 0
    """Of the tries."""


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
    fast: dict[str, Any] = Field(default_factory=dict)
    """Laid over the plan by `--fast`: sizes at which every arm runs for a few steps."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepPlan":
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
    """One run of a sweep.

    Attributes:
        arm: its name.
        seed: its seed.
        folder: where the run goes.
        recipe: complete, with data, labels, teacher, name and seed.
        try_of: the arm whose learning rate it helps to choose; `None` for a run that is compared.
    """

    arm: str
    seed: int
    folder: Path
    recipe: RunConfig
    try_of: str | None = None

    @property
    def learning_rate(self) -> float:
        """The peak learning rate its recipe names."""
        return float(self.recipe.training["learning_rate"])


@dataclass(frozen=True)
class LoadedPlan:
    """A plan with its place and the folder it writes.

    Attributes:
        plan: the plan, with `fast` laid over it where asked for.
        path: its file.
        output: the sweep's folder.
    """

    plan: SweepPlan
    path: Path
    output: Path

    @property
    def teacher_model(self) -> str | None:
        """Where the teacher is or will be."""
        teacher = self.plan.teacher
        return None if teacher is None else teacher.model or str(self.output / "teacher")

    @property
    def teacher_source(self) -> dict[str, Any] | None:
        """What recipes say of the teacher."""
        plan = self.plan.teacher
        return None if plan is None else {"model": self.teacher_model, "layer": plan.layer, "revision": plan.revision}

    @property
    def dictionary_path(self) -> str | None:
        """Where the dictionary is or will be."""
        dictionary = self.plan.dictionary
        return None if dictionary is None else dictionary.path or str(self.output / "dictionary")

    @property
    def dictionary_source(self) -> dict[str, Any] | None:
        """What recipes say of the dictionary."""
        plan = self.plan.dictionary
        if plan is None:
            return None
        return {"path": self.dictionary_path, "sae_id": plan.sae_id, "fingerprint": plan.fingerprint}

    def teacher_recipe(self) -> RunConfig:
        """How to train the teacher."""
        assert self.plan.teacher is not None
        assert self.plan.teacher.recipe is not None
        file, values, _ = self._arm(self.plan.teacher.recipe)
        return self._recipe("teacher", file, values, [*self._data(), "name=teacher", "labels=null"])

    def tries(self) -> list[Job]:
        """The runs by which `tune` chooses learning rates; none without it.

        Raises:
            CoCoMixError: as `jobs`.
        """
        tune, jobs = self.plan.tune, []
        for name, value in self.plan.arms.items() if tune else ():
            assert tune is not None
            file, values, _ = self._arm(value)
            rates = tune.learning_rates if isinstance(value, str) else value.get("learning_rates", tune.learning_rates)
            for rate in rates:
                recipe = self._complete(name, file, values, tune.seed, [_rate(rate), _set("tokens", tune.tokens)])
                arm, folder = f"{name} {float(rate):g}", self.output / "tuning" / name / f"{float(rate):g}"
                jobs.append(Job(arm, tune.seed, folder, recipe, name))
        return jobs

    def jobs(self, learning_rates: Mapping[str, float] | None = None) -> list[Job]:
        """Every run, seed by seed, so that all arms have a result before any has its second.

        Args:
            learning_rates: by arm, those that `tune` chose.

        Raises:
            CoCoMixError: a recipe is missing or wrong; the arm is named.
        """
        jobs, chosen = [], learning_rates or {}
        for rank in range(max(len(self._arm(value)[2]) for value in self.plan.arms.values())):
            for name, value in self.plan.arms.items():
                file, values, seeds = self._arm(value)
                if rank < len(seeds):
                    folder = self.output / "runs" / name / f"seed{seeds[rank]}"
                    rate = [_rate(chosen[name])] if name in chosen else []
                    jobs.append(Job(name, seeds[rank], folder, self._complete(name, file, values, seeds[rank], rate)))
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

    def _data(self) -> list[str]:
        return [] if self.plan.prepare is None else [_set("data", str(self.output / "data"))]

    def _complete(self, name: str, file: Path, values: dict[str, Any], seed: int, more: Sequence[str]) -> RunConfig:
        """The arm's recipe, pointed at what the sweep makes."""
        overrides = [*self._data(), _set("name", name), _set("training.seed", seed), *more]
        source = self.teacher_source
        if source is not None:
            overrides.append(_set("teacher", source))
            overrides.append("model.teacher_hidden_size=null")
        plain = self._recipe(name, file, values, overrides)
        if plain.has_concepts and plain.labels is not None and self.plan.dictionary is not None:
            made = plain.labels.labeller or _DEFAULT
            labels = {**made.model_dump(mode="json"), "dictionary": self.dictionary_source}
            labels["path"] = str(label_folder(self.output, made)) if plain.label_folders else None
            overrides.append(_set("labels", {**labels, "teacher": source or labels["teacher"]}))
        if not plain.has_concepts:
            overrides.append("labels=null")
        targets = None if plain.distillation is None else plain.distillation.targets
        if self.plan.teacher is not None and isinstance(targets, Path):
            overrides.append(_set("distillation.targets", str(self.output / "probabilities")))
        return self._recipe(name, file, values, overrides)

    def _recipe(self, name: str, file: Path, values: dict[str, Any], overrides: list[str]) -> RunConfig:
        with TemporaryDirectory() as folder:
            lower, upper = Path(folder) / "common.yaml", Path(folder) / "arm.yaml"
            lower.write_text(yaml.safe_dump({**self.plan.common, "base": str(file.resolve())}), encoding="utf-8")
            upper.write_text(yaml.safe_dump({**values, "base": str(lower)}), encoding="utf-8")
            try:
                return load_recipe(upper, overrides)
            except CoCoMixError as error:
                reason = str(error).removeprefix(f"{upper}: ")
                raise CoCoMixError(f"{self.path}: the arm {name!r} (from {file}): {reason}") from None


def load_plan(path: Path, output: Path | None = None, *, fast: bool = False) -> LoadedPlan:
    """Read a plan.

    Args:
        path: a YAML file.
        output: the sweep's folder; by default `sweeps/NAME`, with `-fast` at its end for `fast`.
        fast: lay the plan's `fast:` over it.

    Raises:
        CoCoMixError: it is missing or no plan, an arm's name stands twice, or a field is unknown or wrong.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise missing_recipe(path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CoCoMixError(f"the plan {path} cannot be read: {error}.") from None
    if not isinstance(values, dict):
        raise CoCoMixError(f"{path} is no plan: it must be a YAML mapping with arms: and baseline:.")
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


def label_folder(output: Path, made: LabellerConfig) -> Path:
    """Where labels that are made so go: arms that choose labels alike share them, whatever their recipes' teacher."""
    values, default = (each.model_dump(mode="json", exclude={"teacher", "dictionary"}) for each in (made, _DEFAULT))
    return output / "labels" / ("default" if values == default else fingerprint_json(values)[:12])


def _rate(learning_rate: float) -> str:
    return _set("training.learning_rate", float(learning_rate))


def _set(field: str, value: Any) -> str:
    return f"{field}={json.dumps(value)}"
