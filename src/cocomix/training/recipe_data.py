"""What a recipe says of its data: one corpus, a mixture, or a stream."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, PlainSerializer, Tag

from cocomix.artifacts import shown, url_of
from cocomix.runtime.section import Section

__all__ = ["CorpusConfig", "DataConfig", "Folder", "MixtureConfig", "StreamConfig"]


def _without_secrets(path: Path) -> Path:
    """Refuse a URL that holds access keys, so that none gets into a run folder."""
    url_of(path)
    return path


def _pattern_without_secrets(pattern: str) -> str:
    _without_secrets(Path(pattern))
    return pattern


Folder = Annotated[
    Path,
    AfterValidator(_without_secrets),
    PlainSerializer(shown, return_type=str, when_used="json"),
]
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


class MixtureConfig(Section):
    """Several corpora of one tokenizer and block size, drawn from in given shares."""

    mixture: tuple[CorpusConfig, ...] = Field(min_length=1)
    """The corpora. An epoch has as many blocks as they have together."""


class StreamConfig(Section):
    """A corpus beyond the disk: Parquet shards that are tokenized while training. It has no stored labels."""

    stream: tuple[Annotated[str, AfterValidator(_pattern_without_secrets)], ...] = Field(min_length=1)
    """Parquet files, folders of them or patterns with `*`, as paths or URLs (`s3://…`, `gs://…`,
    `hf://datasets/NAME@COMMIT/…`; a hub URL must name its revision)."""
    heldout: Folder
    """Folder written by `cocomix prepare` from texts that are not in the stream: gives tokenizer, block size and the
    validation blocks."""
    text_column: str = "text"
    """Column of the shards that holds the text."""
    lanes: int = Field(default=64, ge=1)
    """Row groups read side by side, if there are so many; processes times loader workers should divide it. Another
    number is another order."""


def _kind(value: Any) -> str:
    """Which of the three a value is meant as, so that its faults are told of that one alone."""
    if isinstance(value, StreamConfig) or (isinstance(value, dict) and "stream" in value):
        return "stream"
    if isinstance(value, MixtureConfig | dict):
        return "mixture"
    return "folder"


DataConfig = Annotated[
    Annotated[Folder, Tag("folder")]
    | Annotated[MixtureConfig, Tag("mixture")]
    | Annotated[StreamConfig, Tag("stream")],
    Discriminator(_kind),
]
