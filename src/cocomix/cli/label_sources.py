"""Where `cocomix label` takes a labeller's settings from: a recipe, and options that override it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cocomix.concepts import DictionaryConfig, LabellerConfig, labeller_config, labeller_config_type
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import describe_validation_error
from cocomix.runtime.yaml_text import parse_yaml
from cocomix.training.recipe import load_recipe

__all__ = ["label_sources"]


def label_sources(
    recipe: Path | None,
    *,
    teacher: str | None,
    dictionary: str | None,
    sae_id: str | None,
    layer: int | None,
    assignments: Sequence[str],
    revision: str | None = None,
    layer_of: Callable[[DictionaryConfig], int],
) -> LabellerConfig:
    """Put together where labels come from: a recipe, and options that override it.

    Args:
        recipe: takes how labels are made from its `labels`.
        teacher: a model that overrides the recipe's.
        dictionary: release or folder that overrides the recipe's.
        sae_id: which autoencoder of the release.
        layer: block the dictionary describes.
        assignments: `field=value` for the labeller's settings; `kind=…` first, where it is another.
        revision: commit of a model on the hub; overrides the recipe's.
        layer_of: finds the layer a dictionary folder was fitted on, where none is given.

    Raises:
        CoCoMixError: teacher or dictionary is given by neither, or a setting is unknown.
    """
    base = None if recipe is None else load_recipe(recipe).labels
    values: dict[str, Any] = {"kind": "attribution"}
    if base is not None and base.labeller is not None:
        values = base.labeller.model_dump(exclude_unset=True)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise CoCoMixError(f"--set {assignment} is not of the form field=value.")
        given = parse_yaml(text, f"--set {assignment}")
        if key == "kind" and given != values["kind"]:  # the settings of another kind are none of this one's
            values = {name: values[name] for name in ("k", "dtype", "teacher", "dictionary") if name in values}
        values[key] = given
    values = _with_options(values, teacher, revision, layer, dictionary, sae_id, layer_of)
    try:
        config = labeller_config(values)
    except ValidationError as error:
        found = describe_validation_error(error, labeller_config_type(values["kind"]), {"selection": "kind"})
        raise CoCoMixError(f"label settings: {found}.") from None
    if missing := config.missing():
        raise CoCoMixError(f"no {missing[0]} is given; name it with --{missing[0]}, or use a --recipe that does.")
    return config


def _with_options(
    values: dict[str, Any],
    teacher: str | None,
    revision: str | None,
    layer: int | None,
    dictionary: str | None,
    sae_id: str | None,
    layer_of: Callable[[DictionaryConfig], int],
) -> dict[str, Any]:
    """A labeller's settings with the options of the command line laid over them."""
    of_recipe, described = dict(values.get("teacher") or {}), dict(values.get("dictionary") or {})
    if dictionary is not None:
        described, of_recipe["layer"] = {"path": dictionary}, None  # the layer of another dictionary is another
    if sae_id is not None:
        described["sae_id"] = sae_id
    if teacher is not None:
        of_recipe = {"model": teacher, "layer": of_recipe.get("layer")}
    if revision is not None:
        of_recipe["revision"] = revision
    if layer is not None:
        of_recipe["layer"] = layer
    if of_recipe.get("layer") is None:  # without a dictionary any layer will do: the settings are refused anyway
        of_recipe["layer"] = layer_of(DictionaryConfig.model_validate(described)) if described else 0
    parts = {"teacher": of_recipe if "model" in of_recipe else None, "dictionary": described or None}
    return {**values, **{name: part for name, part in parts.items() if part is not None}}
