"""Packed token blocks, read from the flat `.npy` files of a `Tokens` folder through a bounded number of memory maps.

A file is a one-dimensional little-endian array of uint16 (vocabularies of up to 65,536 tokens) or uint32, `block_size`
tokens a block, one block after another: `np.load(file, mmap_mode="r").reshape(-1, block_size)`.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cocomix.artifacts import mapped_array
from cocomix.runtime.ignore import IGNORE

if TYPE_CHECKING:
    from cocomix.data.tokens import SplitMeta, Tokens, TokensFile


@dataclass(frozen=True)
class TokenShard:
    """A range of blocks of one file: the unit of work of labelling. Picklable; reads through its own process's maps."""

    file: "TokensFile"
    """The file within the folder."""
    start: int
    """First block, counted within the file."""
    stop: int
    """One past the last block."""
    tokens: "Tokens" = field(repr=False)

    def read(self) -> NDArray[Any]:
        """The blocks [stop − start, block_size], uint16 or uint32, as a read-only view of the file's memory map."""
        return mapped_blocks(self.tokens, self.file)[self.start : self.stop]


class TokenBlocks(Dataset[dict[str, torch.Tensor]]):
    """The blocks of a split, in order, as a map-style data set. Picklable and cheap to index.

    Args:
        files: the files, in order, each with the folder it is in.
        scattered: the blocks are read here and there rather than one after another, see `mapped_array`.
    """

    def __init__(
        self,
        files: "Sequence[tuple[Tokens, TokensFile]]",
        counts: "SplitMeta",
        block_size: int,
        scattered: bool = False,
    ) -> None:
        self.counts, self.block_size, self.scattered = counts, block_size, scattered
        self._files = tuple(files)
        self._starts = [0, *accumulate(file.blocks for _, file in files)]

    def __len__(self) -> int:
        return self.counts.blocks

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`{"input_ids": int64 [block_size]}` of one block; a copy."""
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        return {"input_ids": torch.from_numpy(self.rows(index, index + 1)[0].astype(np.int64))}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (self[index] for index in range(len(self)))

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Blocks `start` to `stop` − 1, uint16 or uint32 [stop − start, block_size]; a view where one file holds all.

        Raises `CoCoMixError` where a file is missing, damaged or not the one that was written, or cannot be mapped.
        """
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"blocks {start} to {stop} of {len(self)}")
        parts = []
        while start < stop:
            number = bisect_right(self._starts, start) - 1
            first, end = self._starts[number], min(stop, self._starts[number + 1])
            parts.append(mapped_blocks(*self._files[number], self.scattered)[start - first : end - first])
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def mapped_blocks(tokens: "Tokens", file: "TokensFile", scattered: bool = False) -> NDArray[Any]:
    """The blocks of one file [blocks, block_size], uint16 or uint32, as a read-only view; see `mapped_array`."""
    shape = (file.blocks * tokens.manifest.block_size,)
    flat = mapped_array(tokens, file.name, tokens.dtype, shape, scattered=scattered)
    return flat.reshape(-1, tokens.manifest.block_size)


def positions_of_rows(input_ids: Tensor, eos_token_id: int, bos_token_id: int | None = None) -> Tensor:
    """Position of every token in its document, counted from the document's first token in the block.

    A document ends with its end-of-document token; the part of a document that a block begins with counts from 0. What
    every block begins with belongs to that part, even where it is the end-of-document token itself, as in GPT-2.

    Args:
        input_ids: tokens of one or several blocks. [..., seq], int64
        bos_token_id: what every block begins with; `None` where that is text.

    Returns:
        Positions [..., seq], int64; 0 at the start of every document.
    """
    index = torch.arange(input_ids.shape[-1])
    begins = torch.zeros_like(input_ids)
    begins[..., 1:] = torch.where(input_ids[..., :-1] == eos_token_id, index[1:], 0)
    if bos_token_id is not None:
        begins[..., 1:2] = 0
    return index - begins.cummax(-1).values


class DocumentBlocks(Dataset[dict[str, Tensor]]):
    """Blocks with `position_ids` that start again at every document, and `labels` that leave its first token out.

    Decoders of transformers read positions that start again as documents that must not see each other.

    Args:
        blocks: rows with `input_ids` [seq]; whatever else is in a row stays.
        bos_token_id: what every block begins with; the first document of a block sees it, the others do not.
    """

    def __init__(self, blocks: Any, eos_token_id: int, bos_token_id: int | None = None) -> None:
        self.blocks, self.eos_token_id, self.bos_token_id = blocks, eos_token_id, bos_token_id

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.blocks[index]
        positions = positions_of_rows(row["input_ids"], self.eos_token_id, self.bos_token_id)
        return {**row, "position_ids": positions, "labels": row["input_ids"].masked_fill(positions == 0, IGNORE)}
