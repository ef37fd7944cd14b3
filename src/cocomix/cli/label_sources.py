"""Where `cocomix label` takes teacher, dictionary and settings from: a recipe, and options that override it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cocomix.concepts import DictionaryConfig, LabellerConfig, TeacherConfig
from cocomix.labelling import LabelSettings, Scores
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
) -> tuple[LabellerConfig, Scores]:
    """Put together where labels come from: a recipe, and options that override it.

    Args:
        recipe: takes `teacher`, `dictionary` and `attribution` from there.
        teacher: a model that overrides the recipe's.
        dictionary: release or folder that overrides the recipe's.
        sae_id: which autoencoder of the release.
        layer: block the dictionary describes.
        assignments: `field=value` for the label settings.
        revision: commit of a model on the hub; overrides the recipe's.
        layer_of: finds the layer a dictionary folder was fitted on, where none is given.

    Returns:
        The labeller's settings, and the type in which its scores are kept.

    Raises:
        CoCoMixError: teacher or dictionary is given by neither, or a setting is unknown.
    """
    base = None if recipe is None else load_recipe(recipe)
    model = teacher or (base.teacher.model if base and base.teacher else None)
    path = dictionary or (base.dictionary.path if base and base.dictionary else None)
    if model is None or path is None:
        missing = "teacher" if model is None else "dictionary"
        raise CoCoMixError(f"no {missing} is given; name it with --{missing}, or use a --recipe that does.")
    if layer is None and base is not None and base.teacher is not None and dictionary is None:
        layer = base.teacher.layer
    if sae_id is None and base is not None and base.dictionary is not None and dictionary is None:
        sae_id = base.dictionary.sae_id
    if revision is None and base and base.teacher and teacher is None:
        revision = base.teacher.revision
    pinned = base.dictionary.fingerprint if base and base.dictionary and dictionary is None else None
    values: dict[str, Any] = base.attribution.model_dump() if base and base.attribution else {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise CoCoMixError(f"--set {assignment} is not of the form field=value.")
        values[key] = parse_yaml(text, f"--set {assignment}")
    try:
        settings = LabelSettings.model_validate(values)
        used = DictionaryConfig(path=path, sae_id=sae_id, fingerprint=pinned)
        source = TeacherConfig(model=model, layer=layer_of(used) if layer is None else layer, revision=revision)
    except ValidationError as error:
        raise CoCoMixError(f"label settings: {describe_validation_error(error)}.") from None
    return settings.config(source, used), settings.score_dtype
