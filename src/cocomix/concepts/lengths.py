"""Sequences of different lengths in few padded batches."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["length_batches", "pad_right"]


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Group sequences of similar length, longest first, so that memory is asked for at the start.

    Args:
        lengths: tokens of each sequence.
        batch_tokens: most tokens of a batch, padding included; a longer sequence is a batch of its own.

    Yields:
        Indices of the sequences of one batch, the longest first; every index once.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // lengths[order[start]])
        yield order[start : start + count]
        start += count


def pad_right(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """One batch: tokens [batch, longest], and the mask [batch, longest] (1 = token), None if nothing is padded."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=tokens.device)
    if bool((lengths == tokens.shape[1]).all()):
        return tokens, None
    return tokens, (torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]).long()
