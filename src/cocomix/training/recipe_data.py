"""What a recipe says of its data (one corpus, or a mixture, and how much of it a machine holds) and of its labels."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    SerializeAsAny,
    Tag,
    model_serializer,
    model_validator,
)

from cocomix.artifacts import shown, url_of
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


def _without_secrets(path: Path) -> Path:
    """Refuse a URL that holds access keys, so that none gets into a run folder."""
    url_of(path)
    return path


Folder = Annotated[Path, AfterValidator(_without_secrets), PlainSerializer(shown, return_type=str, when_used="json")]
"""A folder, or the URL of one."""


class CorpusConfig(Section):
    """One corpus of a mixture."""

    path: Folder
    """Folder written by `cocomix prepare`."""
    weight: float = Field(gt=0.0, allow_inf_nan=False)
    """Its share of the training blocks, in any unit."""
    labels: Folder | None = None
    """Folder written by `cocomix label` from this corpus."""
    targets: Folder | None = None
    """Folder written by `cocomix distill` from this corpus, for `distillation`; without it the teacher runs online."""


class BoundedConfig(Section):
    """How much of what is at URLs this machine holds."""

    cache_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Training files at URLs, also those of labels and probabilities, are fetched when they are needed and take at most
    so many GB (10⁹ bytes) here; by default all are fetched at the start. With a limit, blocks come in another order:
    that of `window_files`."""
    window_files: int = Field(default=8, ge=1)
    """With `cache_gb`: the blocks of so many files at a time, of each corpus, are shuffled among themselves. 8 files of
    the default size are 2·10⁹ tokens, far more than a batch."""


class CachedConfig(BoundedConfig):
    """One corpus beyond the disk."""

    path: Folder
    """Folder written by `cocomix prepare`, or its URL."""


class MixtureConfig(BoundedConfig):
    """Several corpora of one tokenizer and block size, drawn from in given shares."""

    mixture: tuple[CorpusConfig, ...] = Field(min_length=1)
    """The corpora. An epoch has as many blocks as they have together."""


def _kind(value: Any) -> str:
    """Which of the three a value is meant as, so that its faults are told of that one alone."""
    if isinstance(value, MixtureConfig) or (isinstance(value, dict) and "mixture" in value):
        return "mixture"
    return "corpus" if isinstance(value, CachedConfig | dict) else "folder"


def _no_stream(value: Any) -> Any:
    if isinstance(value, dict) and {"stream", "heldout", "lanes"} & set(value):
        raise ValueError(
            "text is no longer tokenized while training: run `cocomix prepare` (beyond one machine as datatrove tasks "
            "or with --share), `cocomix push` the tokens to a URL, and set data: {path: URL, cache_gb: …}"
        )
    return value


DataConfig = Annotated[
    Annotated[Folder, Tag("folder")]
    | Annotated[CachedConfig, Tag("corpus")]
    | Annotated[MixtureConfig, Tag("mixture")],
    Discriminator(_kind),
    BeforeValidator(_no_stream),
]


class LabelsConfig(Section):
    """The concept labels of a run: where they are stored, how they are made, or both.

    labels: labels/mine                                   # stored there
    labels: {kind: attribution, teacher: {model: gpt2, layer: 5}, dictionary: {path: sae/mine}}   # made while training
    labels: {path: labels/mine, kind: activation, k: 8}   # stored there, made so: for `cocomix label`, and a check
    """

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
