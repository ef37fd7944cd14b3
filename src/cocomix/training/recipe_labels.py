"""What a recipe says of its labels: where they are stored, how they are made, or both.

labels: labels/mine                                   # stored there
labels: {kind: attribution, teacher: {model: gpt2, layer: 5}, dictionary: {path: sae/mine}}    # made while training
labels: {path: labels/mine, kind: activation, k: 8}   # stored there, and made so: for `cocomix label`, and a check
"""

from collections.abc import Iterator, Mapping
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
