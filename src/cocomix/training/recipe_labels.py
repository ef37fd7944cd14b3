"""What a recipe says of its labels: where they are stored, how they are made, or both.

labels: labels/mine                                   # stored there
labels: {kind: attribution, teacher: {model: gpt2, layer: 5}, dictionary: {path: sae/mine}}    # made while training
labels: {path: labels/mine, kind: activation, k: 8}   # stored there, and made so: for `cocomix label`, and a check
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import SerializeAsAny, model_serializer, model_validator

from cocomix.concepts import (
    DictionaryConfig,
    LabellerConfig,
    OnlineConfig,
    TeacherConfig,
    TeacherLabellerConfig,
    labeller_config,
    labeller_config_type,
    labeller_kinds,
)
from cocomix.runtime.section import Section
from cocomix.training.recipe_data import Folder

_OLD = {"attribution", "dictionary"}
_SETTINGS = {"attribution": ("activation", "gradient", "sign"), "activation": (), "random": ("seed",)}
"""Of the old `attribution` section: what each `selection` reads beside k and dtype."""


class LabelsConfig(Section):
    """The concept labels of a run."""

    path: Folder | None = None
    """Folder written by `cocomix label`; without it labels are made while training, which takes part of its seconds."""
    labeller: SerializeAsAny[LabellerConfig] | None = None
    """How labels are made. In recipes its fields (`kind`, `k`, …) stand beside `path`."""

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            return {"path": value}
        if isinstance(value, LabellerConfig):
            return {"labeller": value}
        if not isinstance(value, Mapping) or "labeller" in value:
            return value
        made = {name: field for name, field in value.items() if name != "path"}
        if not made and value.get("path") is None:
            raise ValueError("give a folder of stored labels, or kind: and the rest of how they are made")
        labeller = labeller_config(made) if made else None
        if value.get("path") is not None and isinstance(labeller, OnlineConfig):
            raise ValueError(
                "labels of kind online are made while training, not stored; leave path out, or null over a base"
            )
        return {"path": value.get("path"), "labeller": labeller}

    @model_serializer(mode="wrap")
    def _to_flat(self, handler: Any) -> dict[str, Any]:
        values = handler(self)
        return {"path": values["path"], **(values["labeller"] or {})}

    @classmethod
    def field_names(cls) -> Iterator[str]:
        """See `Section`; the settings of every kind."""
        yield "path"
        for kind in labeller_kinds():
            yield from labeller_config_type(kind).field_names()

    @property
    def teacher(self) -> TeacherConfig | None:
        """The teacher that makes them, if one is named."""
        return self.labeller.teacher if isinstance(self.labeller, TeacherLabellerConfig) else None

    @property
    def dictionary(self) -> DictionaryConfig | None:
        """The dictionary that they name concepts of, if one is named."""
        return self.labeller.dictionary if isinstance(self.labeller, TeacherLabellerConfig) else None


def with_new_spelling(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe in the spelling of today.

    Recipes used to say `labels: FOLDER` or `labels: online`, and beside it `teacher:`, `dictionary:` and
    `attribution: {selection: …}`. `teacher:` was that of distillation and of hidden states, too, for which it stays.
    """
    values = {name: value for name, value in values.items() if value is not None or name not in _OLD}
    labels = values.get("labels")
    if not _OLD & values.keys() and labels != "online":
        return values
    for name in _OLD & values.keys():
        if not isinstance(values[name], Mapping):
            raise ValueError(f"{name} must be a mapping, not {values[name]!r}")
    old = dict(values.pop("attribution", {}))
    dictionary = values.pop("dictionary", None)
    teacher = values.get("teacher")
    student = values.get("model")
    hidden = isinstance(student, Mapping) and student.get("prediction") == "hidden"
    if values.get("distillation") is None and not hidden:
        values.pop("teacher", None)
    if labels is None and not _has_corpora_with_labels(values.get("data")):
        return values  # nothing would read them
    made = dict(labels) if isinstance(labels, Mapping) else {} if labels in (None, "online") else {"path": labels}
    kind = old.pop("selection", made.get("kind", "attribution"))
    others = {name for each, names in _SETTINGS.items() if each != kind for name in names}
    old.pop("score_dtype", None)  # of the storage: an option of `cocomix label`
    if teacher is not None:
        made.setdefault("teacher", teacher)
    if dictionary is not None:  # as `attribution` does, it says something else than a newer recipe below it
        below = made.get("dictionary")
        made["dictionary"] = {**below, **dictionary} if isinstance(below, Mapping) else dictionary
    made = {**made, **old, "kind": kind}
    return {**values, "labels": {name: value for name, value in made.items() if name not in others}}


def _has_corpora_with_labels(data: Any) -> bool:
    corpora = data.get("mixture") if isinstance(data, Mapping) else None
    found = corpora if isinstance(corpora, Sequence) else ()
    return any(isinstance(corpus, Mapping) and corpus.get("labels") is not None for corpus in found)
