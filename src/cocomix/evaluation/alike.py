"""Which runs may be compared: those whose recipes differ in nothing but what the arm is about.

Recipes are compared field by field under dotted names (`model.backbone.n_embd`), settings of `TrainingArguments` that a
recipe leaves out with their defaults. Folders are compared by what is in them: data by its fingerprint, labels of two
seeds by theirs.
"""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run
from cocomix.training.recipe import RunConfig, load_recipe

_SIZES = (
    *("n_embd", "n_layer", "n_head", "n_inner", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)

SEED_FIELDS = ("training.seed", "training.data_seed")
"""What may differ between two runs of one arm."""

ARM_FIELDS = (
    *SEED_FIELDS,
    "name",
    *("objective", "baseline", "labels", "distillation", "auxiliary", "teacher"),
    *("model.mixing", "model.insert_layer", "model.num_concepts", "model.concept_topk", "model.concept_loss_weight"),
    *("model.prediction", "model.hidden_loss", "model.teacher_hidden_size", "model.compression_init"),
    "model.concept_weights",
    *("model.add_mean", "model.upper_positions", "model.concept_rank", "model.repeats", "model.bigram_rows"),
    *("model.chunk_tokens", "model.chunk_codes", "model.chunk_blocks"),
    *(f"model.backbone.{size}" for size in _SIZES),
    "training.learning_rate",
)
"""What an arm may have of its own: what is predicted and mixed, from which labels or teacher; the width and depth of a
matched baseline; the learning rate, which is tuned for each arm. A name stands for the fields below it, too."""

_PLACES = ("data", "data.path", "data.mixture.*.path", "data.mixture.*.labels", "data.mixture.*.targets")
_CONTENT = ("data.fingerprint", "data.tokenizer_fingerprint", "data.block_size")
_EFFECTIVE = ("training_dtype", "evaluation_dtype", "evaluation_blocks", "tokens")
"""Fields of the manifest that follow from the machine or the data as well as from the recipe."""
_NEVER = ("data", "evaluation_blocks", "evaluation_dtype")
"""Where two runs differ in these, their losses are of other tokens or of another precision."""


def refuse_unlike(runs: Sequence[Run], vary: Iterable[str] = ()) -> None:
    """Refuse runs that differ in what is not the arm's own, and a field in `vary` (what the comparison is about, beside
    `ARM_FIELDS`) that the recipes do not have. Two runs of one name must differ in their seed, and in nothing else.
    """
    fields = {run.path: run_fields(run) for run in runs}
    known = {name for values in fields.values() for name in values}
    for name in vary:
        if _within(name, _NEVER):
            raise CoCoMixError(f"--vary {name}: losses on other data or in another precision cannot be compared.")
        if not any(_within(field, [name]) for field in known):
            raise CoCoMixError(f"--vary {name} names no field of these recipes; give a dotted name such as tokens.")
    firsts: dict[str, Run] = {}
    seen: dict[tuple[str, int], Run] = {}
    for run in runs:
        name, seed = run.manifest.name, run.manifest.seed
        if (twin := seen.setdefault((name, seed), run)) is not run:
            raise CoCoMixError(
                f"{twin.path} and {run.path} are both {name!r} with seed {seed}; name each run once, or rename one."
            )
        first = firsts.setdefault(name, run)
        if found := _difference(fields[first.path], fields[run.path], SEED_FIELDS):
            raise CoCoMixError(
                f"{first.path} and {run.path} are both named {name!r} but differ in {found}, so they are not two seeds "
                "of one arm; give them different names."
            )
        if found := _difference(fields[runs[0].path], fields[run.path], (*ARM_FIELDS, *vary)):
            raise CoCoMixError(f"{runs[0].path} and {run.path} differ in {found}{_REMEDY} (--vary FIELD).")


def refuse_unlike_recipes(recipes: Mapping[str, RunConfig], vary: Iterable[str] = ()) -> None:
    """Refuse the recipes of a sweep's arms whose runs `refuse_unlike` would refuse, before they are trained."""
    first, *others = recipes
    fields = {name: recipe_fields(recipe) for name, recipe in recipes.items()}
    for name in others:
        if found := _difference(fields[first], fields[name], (*ARM_FIELDS, *vary)):
            raise CoCoMixError(f"the arms {first!r} and {name!r} differ in {found}{_REMEDY}.")


_REMEDY = ", which is not an arm's own; let them share it, or name it in vary where the comparison is about it"


def recipe_fields(recipe: RunConfig) -> dict[str, Any]:
    """A recipe under dotted names, defaults filled in, without the folders of its data."""
    from transformers import TrainingArguments

    from cocomix.training.arguments import DEFAULTS

    given = dataclasses.fields(TrainingArguments)
    defaults = {field.name: field.default for field in given if field.default is not dataclasses.MISSING}
    values = recipe.model_dump(mode="json")
    values["training"] = {**defaults, **DEFAULTS, **values["training"]}
    return {name: value for name, value in _flat(values) if not any(fnmatch.fnmatch(name, one) for one in _PLACES)}


def run_fields(run: Run) -> dict[str, Any]:
    """A run's recipe, which must be readable, and what it was trained and evaluated on."""
    found = recipe_fields(load_recipe(run.path / "recipe.yaml"))
    manifest = dict(_flat(run.manifest.model_dump(mode="json", include={"data", *_EFFECTIVE})))
    found |= {name: manifest[name] for name in _CONTENT}
    found |= {f"{name}.in_effect": manifest[name] for name in _EFFECTIVE}
    if run.manifest.labels is not None:
        found["labels.path"] = run.manifest.labels.fingerprint
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _within(field: str, names: Iterable[str]) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in names)


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], free: Sequence[str]) -> str:
    """The first field in which two recipes differ, with both values; empty if they do not."""
    absent = "not given"
    for name in sorted({*one, *other}):
        first, second = one.get(name, absent), other.get(name, absent)
        if first != second and not _within(name, free):
            return f"{name} ({first} and {second})"
    return ""
