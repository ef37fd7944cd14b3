"""Sequences of different lengths in few padded batches."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cocomix.concepts.labeller import ConceptLabeller, ConceptLabels
from cocomix.runtime.errors import CoCoMixError

__all__ = ["label_sequences", "length_batches", "pad_right"]


def label_sequences(
    labeller: ConceptLabeller, sequences: Sequence[Tensor], *, k: int, batch_tokens: int = 4096
) -> list[ConceptLabels]:
    """Label sequences of different lengths, in padded batches of sequences of similar length.

    The same, up to rounding, as labelling each sequence alone.

    Args:
        labeller: of any kind.
        sequences: int64 [seq] each, at least one token.
        k: labels per position.
        batch_tokens: tokens per call of the labeller, padding included; memory depends on it.

    Returns:
        For each sequence, in their order, labels [seq, k].

    Raises:
        CoCoMixError: a sequence is empty or not one-dimensional.
    """
    for index, sequence in enumerate(sequences):
        if sequence.ndim != 1 or len(sequence) == 0:
            raise CoCoMixError(
                f"sequence {index} has shape {list(sequence.shape)}; give one-dimensional sequences of at least one "
                "token."
            )
    found: dict[int, ConceptLabels] = {}
    for batch in length_batches([len(sequence) for sequence in sequences], batch_tokens):
        labels = labeller.label(*pad_right([sequences[index] for index in batch]), k=k)
        for row, index in enumerate(batch):
            kept = slice(len(sequences[index]))
            scores = None if labels.scores is None else labels.scores[row, kept]
            found[index] = ConceptLabels(labels.ids[row, kept], scores)
    return [found[index] for index in range(len(sequences))]


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
