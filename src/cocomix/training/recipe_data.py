"""What a recipe says of its data: one corpus, or a mixture, and how much of it a machine holds."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, PlainSerializer, Tag

from cocomix.artifacts import shown, url_of
from cocomix.runtime.section import Section


def _without_secrets(path: Path) -> Path:
    """Refuse a URL that holds access keys, so that none gets into a run folder."""
    url_of(path)
    return path


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
