"""A folder of prepared data: its description, its tokenizer and its splits."""

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import PreTrainedTokenizerFast

from cocomix.artifacts.output import fingerprint_json, partial_path, read_json
from cocomix.artifacts.remote import local_folder
from cocomix.data.blocks import SplitMeta, TokenBlocks, TokenShard, token_dtype
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer

__all__ = ["FORMAT_VERSION", "DataMeta", "PreparedData", "SourceMeta", "data_fingerprint"]

FORMAT_VERSION = 1
"""Version of the folder's layout; a reader refuses any other."""


class SourceMeta(BaseModel):
    """What was read from one source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """As the user gave it."""
    kind: str
    """`files`, `hub`, `documentation` or `tokens`."""
    splits: tuple[str, ...]
    """The splits its documents could go to."""
    documents: int
    """Documents taken."""
    bytes: int
    """UTF-8 bytes of their text."""


class DataMeta(BaseModel):
    """`meta.json` of a prepared folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    """Version of the folder's layout."""
    cocomix_version: str
    """Version that wrote the folder."""
    fingerprint: str
    """SHA-256 over everything that determines the tokens: tokenizer, block size and the content of every shard."""
    tokenizer_fingerprint: str
    """See `cocomix.data.tokenizer_fingerprint`."""
    tokenizer_name: str
    """Where the tokenizer came from, as the user gave it, or how it was trained."""
    vocab_size: int = Field(ge=1)
    """Rows an embedding needs: the largest token number plus one."""
    eos_token_id: int
    """The token after every document."""
    bos_token_id: int | None = None
    """The token that every block begins with, before `block_size` − 1 tokens of the documents; `None` where blocks hold
    nothing but documents."""
    block_size: int = Field(ge=2)
    """Tokens per block."""
    seed: int
    """Seed of the split by document."""
    sources: tuple[SourceMeta, ...]
    """What was read."""
    splits: dict[Annotated[str, Field(pattern=r"^\w+$")], SplitMeta]
    """`train` and `validation`."""
    invalid_utf8: int
    """Characters put in for bytes that were not UTF-8."""


def data_fingerprint(
    tokenizer_fingerprint: str, block_size: int, splits: dict[str, SplitMeta], bos_token_id: int | None = None
) -> str:
    """SHA-256 (hex) over everything that determines the tokens, and what every block is said to begin with."""
    shards = {name: [(shard.blocks, shard.sha256) for shard in split.shards] for name, split in splits.items()}
    values = {"tokenizer": tokenizer_fingerprint, "block_size": block_size, "shards": shards}
    return fingerprint_json(values if bos_token_id is None else {**values, "bos": bos_token_id})


class PreparedData:
    """Prepared token blocks on the disk.

    Attributes:
        path: the folder.
        meta: its description.
    """

    def __init__(self, path: Path, meta: DataMeta) -> None:
        self.path = path
        self.meta = meta
        self._splits = {name: self._blocks(name, split) for name, split in meta.splits.items()}

    @classmethod
    def open(cls, path: str | Path) -> "PreparedData":
        """Open a folder written by `prepare`; reads `meta.json` and the sizes of the shards, nothing else.

        Args:
            path: the folder, or its URL: then this is a local copy, whose shards are fetched when they are read.

        Raises:
            CoCoMixError: it is no such folder, was written in another format, or a shard is missing or truncated.
        """
        path = local_folder(path, "meta.json", ("tokenizer",))
        if not (path / "meta.json").is_file():
            unfinished = partial_path(path).is_dir() and not path.exists()
            remedy = "cocomix prepare did not finish there; run it again" if unfinished else "run cocomix prepare first"
            raise CoCoMixError(f"{path} is not a folder of prepared data (it has no meta.json); {remedy}.")
        value = read_json(path / "meta.json")
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            raise CoCoMixError(
                f"{path} has data format {version}, and this version of cocomix reads format {FORMAT_VERSION}; "
                "run cocomix prepare again."
            )
        try:
            meta = DataMeta.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CoCoMixError(f"{path / 'meta.json'} is damaged ({where}: {first['msg']}); prepare again.") from error
        data = cls(path, meta)
        for split in meta.splits:
            for shard in data.split(split).shards:
                shard.check()
        return data

    def split(self, name: str) -> TokenBlocks:
        """The blocks of `train` or `validation`.

        Raises:
            CoCoMixError: there is no such split.
        """
        if name not in self._splits:
            raise CoCoMixError(f"{self.path} has no split {name!r}; it has {', '.join(self._splits)}.")
        return self._splits[name]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Load the tokenizer the blocks were made with."""
        return load_tokenizer(str(self.path / "tokenizer"))

    def _blocks(self, name: str, split: SplitMeta) -> TokenBlocks:
        dtype: np.dtype[np.generic] = token_dtype(self.meta.vocab_size)
        shards = [
            TokenShard(
                self.path / name / f"{shard.name}.arrow",
                f"{name}/{shard.name}",
                num_blocks=shard.blocks,
                block_size=self.meta.block_size,
                dtype=dtype,
                sha256=shard.sha256,
            )
            for shard in split.shards
        ]
        return TokenBlocks(shards, split, self.meta.block_size)
