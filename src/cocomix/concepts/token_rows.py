"""What this room asks of prepared tokens, whoever prepared them."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["TokenBlocksLike", "TokenShardLike", "first_blocks", "spread_blocks"]


class TokenBlocksLike(Protocol):
    """A data set of token blocks of one length: row i has `input_ids`, int64 [block_size]."""

    def __len__(self) -> int:
        """Number of blocks."""
        ...

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        """One block."""
        ...


def first_blocks(blocks: TokenBlocksLike, tokens: int) -> Tensor:
    """The first blocks, as many as hold `tokens` tokens and at least one. int64 [blocks, block_size]"""
    count = max(1, tokens // len(blocks[0]["input_ids"]))
    return torch.stack([blocks[index]["input_ids"] for index in range(min(count, len(blocks)))])


def spread_blocks(blocks: TokenBlocksLike, tokens: int) -> Tensor:
    """Evenly spaced blocks, as many as hold `tokens` tokens and at least one. int64 [blocks, block_size]"""
    count = min(len(blocks), max(1, tokens // len(blocks[0]["input_ids"])))
    return torch.stack([blocks[place * len(blocks) // count]["input_ids"] for place in range(count)])


class TokenShardLike(Protocol):
    """A shard of prepared tokens."""

    @property
    def name(self) -> str:
        """Split and number, `train/00000`."""
        ...

    @property
    def num_blocks(self) -> int:
        """Rows."""
        ...

    def read(self) -> NDArray[Any]:
        """Token ids [num_blocks, block_size], any integer dtype."""
        ...
