"""What this room asks of prepared tokens, whoever prepared them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class TokenBlocksLike(Protocol):
    """A data set of token blocks of one length: row i has `input_ids`, int64 [block_size]."""

    def __len__(self) -> int:
        """Number of blocks."""

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        """One block."""


def first_blocks(blocks: TokenBlocksLike, tokens: int) -> Tensor:
    """The first blocks, as many as hold `tokens` tokens and at least one. int64 [blocks, block_size]"""
    count = max(1, tokens // len(blocks[0]["input_ids"]))
    return torch.stack([blocks[index]["input_ids"] for index in range(min(count, len(blocks)))])


def spread_blocks(blocks: TokenBlocksLike, tokens: int) -> Tensor:
    """Evenly spaced blocks, as many as hold `tokens` tokens and at least one. int64 [blocks, block_size]"""
    count = min(len(blocks), max(1, tokens // len(blocks[0]["input_ids"])))
    return torch.stack([blocks[place * len(blocks) // count]["input_ids"] for place in range(count)])


def pad_right(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """One batch: tokens [batch, longest], and the mask [batch, longest] (1 = token), None if nothing is padded."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=tokens.device)
    if bool((lengths == tokens.shape[1]).all()):
        return tokens, None
    return tokens, (torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]).long()
