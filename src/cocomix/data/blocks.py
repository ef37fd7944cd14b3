"""Token blocks on the disk: written once, in order, with bounded memory; read through a memory map.

A shard is one Arrow stream file with one record batch and one column, `input_ids`: a fixed-size list of `block_size`
token numbers. `datasets.Dataset.from_file` reads it too.
"""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch.utils.data import Dataset

from cocomix.artifacts.remote import fetched, known_size
from cocomix.runtime.errors import CoCoMixError

__all__ = ["BlockWriter", "ShardMeta", "SplitMeta", "TokenBlocks", "TokenShard", "token_dtype"]

TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.int32]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type tokens are stored in: uint16 for vocabularies up to 65,536 entries, else int32."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<i4")


class ShardMeta(BaseModel):
    """One file of blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^\w+$")
    """Name of the file in its split, without ".arrow": `00000`, `00001`, ..."""
    blocks: int = Field(ge=0)
    """Blocks in it."""
    sha256: str
    """Hash of its token numbers as little-endian bytes (uint16 or int32), independent of the file format."""


class SplitMeta(BaseModel):
    """What a split holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: int
    """Documents read into the split."""
    tokens: int
    """Tokens of these documents, each with its end-of-document token but without what blocks begin with; the last
    ones, fewer than fill a block, are not stored."""
    bytes: int
    """UTF-8 bytes of the documents' text."""
    blocks: int
    """Blocks stored."""
    shards: tuple[ShardMeta, ...]
    """The files, in order."""

    @model_validator(mode="after")
    def _counts_agree(self) -> "SplitMeta":
        if self.blocks != sum(shard.blocks for shard in self.shards):
            raise ValueError(f"{self.blocks} blocks are not those of the shards together")
        return self


class BlockWriter:
    """Packs a stream of tokens into fixed blocks, shard after shard; holds one shard in memory.

    Args:
        folder: where the shards go; created when missing.
        block_size: tokens per block.
        blocks_per_shard: blocks per file; the last one may hold fewer.
        dtype: from `token_dtype`.
        bos_token_id: put at the beginning of every block, before `block_size` − 1 of the tokens; nothing if `None`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        block_size: int,
        blocks_per_shard: int,
        dtype: np.dtype[Any],
        bos_token_id: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.block_size = block_size
        self.shards: list[ShardMeta] = []
        self.tokens = 0
        """Tokens added so far; those put at the beginning of blocks do not count."""
        self._bos_token_id = bos_token_id
        self._taken = block_size - (bos_token_id is not None)  # of the stream, by each block
        self._buffer = np.empty(self._taken * blocks_per_shard, dtype=dtype)
        self._filled = 0

    def add(self, tokens: Sequence[int] | npt.NDArray[Any]) -> None:
        """Append tokens after those added before."""
        array = np.asarray(tokens, dtype=self._buffer.dtype)
        self.tokens += len(array)
        while len(array):
            taken = array[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            array = array[len(taken) :]
            if self._filled == len(self._buffer):
                self._flush()

    def close(self) -> tuple[ShardMeta, ...]:
        """Write the last shard, leaving out tokens that do not fill a block, and return all shards."""
        if self._filled >= self._taken:
            self._flush()
        return tuple(self.shards)

    def _flush(self) -> None:
        blocks = self._filled // self._taken
        tokens = self._buffer[: blocks * self._taken]
        if self._bos_token_id is not None:
            tokens = np.insert(tokens.reshape(blocks, self._taken), 0, self._bos_token_id, axis=1).reshape(-1)
        name = f"{len(self.shards):05d}"
        _write_shard(self.folder / f"{name}.arrow", tokens, self.block_size)
        self.shards.append(ShardMeta(name=name, blocks=blocks, sha256=hashlib.sha256(tokens.tobytes()).hexdigest()))
        self._filled = 0


def _write_shard(path: Path, tokens: npt.NDArray[Any], block_size: int) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(tokens), block_size)
    batch = pa.record_batch([column], names=["input_ids"])
    with path.open("wb") as file:
        with pa.ipc.new_stream(file, batch.schema) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())


class TokenShard:
    """One file of blocks, read through a memory map that is opened at the first read; of remote data, fetched then.

    Attributes:
        name: split and number, such as `train/00000`.
        num_blocks: blocks in it.
        block_size: tokens per block.
    """

    def __init__(
        self, path: Path, name: str, *, num_blocks: int, block_size: int, dtype: np.dtype[Any], sha256: str
    ) -> None:
        self.path = path
        self.sha256 = sha256
        self.name = name
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self._blocks: TokenArray | None = None

    def check(self) -> None:
        """See that the file is there and large enough, without reading it.

        Raises:
            CoCoMixError: it is missing or truncated.
        """
        size = known_size(self.path)
        if size is None:
            raise CoCoMixError(f"the shard {self.path} is missing; run cocomix prepare again.")
        if size < self.num_blocks * self.block_size * self.dtype.itemsize:
            raise CoCoMixError(f"the shard {self.path} is truncated; run cocomix prepare again.")

    def fetch(self) -> None:
        """Have the file on this machine, if it is one of remote data.

        Raises:
            CoCoMixError: it cannot be fetched, or is not what was written.
        """
        fetched(self.path, self._is_intact)

    def read(self) -> TokenArray:
        """All blocks, `[num_blocks, block_size]`, uint16 or int32: a read-only view of the memory map.

        Raises:
            CoCoMixError: the file is missing, truncated, or not the shard that was written.
        """
        if self._blocks is None:
            self.check()
            self._blocks = self._mapped(fetched(self.path, self._is_intact))
        return self._blocks

    def _is_intact(self, file: Path) -> bool:
        return hashlib.sha256(self._mapped(file).tobytes()).hexdigest() == self.sha256

    def _mapped(self, file: Path) -> TokenArray:
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
                batch = reader.read_next_batch()
                batch.validate()  # Arrow ends the process over a list that is longer than what it lists
                if not pa.types.is_fixed_size_list(batch.column("input_ids").type):
                    raise pa.ArrowInvalid("input_ids holds no lists")
                blocks = batch.column("input_ids").flatten().to_numpy(zero_copy_only=True)
        except (pa.ArrowException, KeyError, StopIteration, OSError) as error:
            raise CoCoMixError(f"the shard {self.path} is damaged ({error}); run cocomix prepare again.") from error
        if blocks.dtype != self.dtype or blocks.size != self.num_blocks * self.block_size:
            raise CoCoMixError(f"the shard {self.path} does not hold what meta.json says; run cocomix prepare again.")
        rows: TokenArray = blocks.reshape(self.num_blocks, self.block_size)
        return rows

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory map behind: another process opens its own."""
        return {**self.__dict__, "_blocks": None}


class TokenBlocks(Dataset[dict[str, torch.Tensor]]):
    """All blocks of a split, in order, as a map-style data set; cheap to pickle and to index.

    Attributes:
        block_size: tokens per block.
        shards: the files, in order.
        meta: counts of the split.
    """

    def __init__(self, shards: list[TokenShard], meta: SplitMeta, block_size: int) -> None:
        self.shards = shards
        self.meta = meta
        self.block_size = block_size
        self._ends = list(accumulate(shard.num_blocks for shard in shards))

    def __len__(self) -> int:
        return self.meta.blocks

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`{"input_ids": int64 [block_size]}` of one block; a copy."""
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        row = index - (self._ends[shard - 1] if shard else 0)
        return {"input_ids": torch.from_numpy(self.shards[shard].read()[row].astype(np.int64))}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (self[index] for index in range(len(self)))
