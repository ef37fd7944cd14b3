"""Blocks of a student's tokens as a teacher of another tokenizer reads them, aligned by bytes (method.md 14)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocomix.concepts.token_bytes import TokenBytes, TokenEnds, readable_text

ALIGNMENT = "1"
"""Version of the alignment; raised when labels or targets change, so that those of two versions are never mixed."""
UNREAD = 2
"""Positions at the beginning of a teacher's window of which nothing is used: they have no context, and the first one is
where attention that has nowhere to go is put (attention sink)."""


class AlignedText(NamedTuple):
    """A block's text in the teacher's tokens.

    Attributes:
        tokens: the teacher's. [teacher_seq]
        ends: the byte of the block at which each of them ends; an end-of-document token counts as one. [teacher_seq]
        student_ends: the byte at which each of the student's tokens ends. [seq]
        readable: the student's tokens whose bytes the teacher has read; not those of a cut character. bool [seq]
        closing: the student's end-of-document tokens. bool [seq]
    """

    tokens: list[int]
    ends: NDArray[np.int64]
    student_ends: NDArray[np.int64]
    readable: NDArray[np.bool_]
    closing: NDArray[np.bool_]

    def positions(self) -> NDArray[np.int64]:
        """Of the last teacher's token that ends no later than each of the student's; -1 where there is none. [seq]"""
        return np.where(self.readable, aligned_positions(self.student_ends, self.ends), -1)

    def common(self) -> NDArray[np.int64]:
        """As `positions`, where both tokens end at the same byte; else -1. [seq]"""
        positions = self.positions()
        same = (positions >= 0) & (self.ends[positions] == self.student_ends) if self.tokens else positions >= 0
        return np.where(same, positions, -1)


class Window(NamedTuple):
    """A part of a text that the teacher reads at once.

    Attributes:
        row: of the text.
        start: position of its first token in the text.
        first: position in the text from which the window is used.
    """

    row: int
    start: int
    tokens: list[int]
    first: int


class AlignedTexts:
    """From a student's blocks to a teacher's tokens.

    Args:
        student: tokenizer of the blocks; must be invertible to bytes (see `TokenBytes`).
        teacher: any fast tokenizer.
        max_length: longest sequence that the teacher reads, in its tokens.

    Raises:
        CoCoMixError: the student's tokenizer cannot be inverted to bytes.
    """

    def __init__(self, student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, max_length: int) -> None:
        self.max_length = max_length
        self.teacher = teacher
        self.end = int(student.eos_token_id)
        self.teacher_end = int(teacher.eos_token_id if teacher.eos_token_id is not None else teacher.sep_token_id)
        self._bytes = TokenBytes(student, "of the data")
        self._ends = TokenEnds(teacher, "of the teacher")
        plain, own = (teacher.encode("a", add_special_tokens=added) for added in (False, True))
        self._begin = [int(own[0])] if len(own) > len(plain) and own[0] in teacher.all_special_ids else []

    def read(self, row: NDArray[np.int64], *, substitute: bool = False) -> AlignedText:
        """One block, int64 [seq]; `substitute` as in `readable_text`."""
        tokens = list(self._begin)
        ends = [0] * len(tokens)
        student_ends = np.zeros(len(row), dtype=np.int64)
        readable = np.ones(len(row), dtype=bool)
        base = start = 0
        for stop in (*(np.flatnonzero(row == self.end) + 1).tolist(), len(row)):
            closed = stop > start and row[stop - 1] == self.end
            document = row[start : stop - closed]
            data = self._bytes.of(document)
            # A document that begins in the block begins with the space that SentencePiece adds, one that goes on may
            # begin in the middle of a character.
            lead = int(self._bytes.adds_space and start > 0 and data[:1] == b" ") or _continuation_bytes(data)
            text = readable_text(data[lead:], substitute=substitute)
            own, own_ends = self._ends.encode(text)
            tokens += own
            ends += (base + lead + own_ends).tolist()
            within = self._bytes.ends(document)
            student_ends[start : stop - closed] = base + within
            readable[start : stop - closed] = (within > lead) & (within <= lead + len(text.encode()))
            base += len(data)
            if closed:
                base += 1
                tokens.append(self.teacher_end)
                ends.append(base)
                student_ends[stop - 1] = base
            start = stop
        return AlignedText(tokens, np.array(ends, dtype=np.int64), student_ends, readable, row == self.end)

    def blocks(self, input_ids: Tensor) -> Tensor:
        """The text of blocks as blocks of the teacher's tokens, to fit a dictionary on or to try one.

        Args:
            input_ids: student's tokens, int64 [batch, seq].

        Returns:
            int64 [blocks, length]; what does not fill a block is left out. One short block if that is all there is.
        """
        tokens = [token for row in input_ids.cpu().numpy() for token in self.read(row).tokens]
        length = max(1, min(input_ids.shape[1], self.max_length, len(tokens)))
        return torch.tensor(tokens[: len(tokens) // length * length], dtype=torch.int64).reshape(-1, length)

    def windows(self, texts: Sequence[AlignedText]) -> list[Window]:
        """What the teacher reads of some texts: a long one in windows that overlap by half.

        A later window is to overwrite what an earlier one gave to its second half, which has less context there.
        """
        return [
            Window(
                row,
                start,
                text.tokens[start : start + self.max_length],
                start + (self.max_length // 2 if start else UNREAD),
            )
            for row, text in enumerate(texts)
            for start in _window_starts(len(text.tokens), self.max_length)
            if text.tokens
        ]


def aligned_positions(student_ends: NDArray[np.int64], teacher_ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each student's token, the last teacher's token that ends no later; -1 where there is none. [seq]

    Both arguments hold the byte at which each token ends, not decreasing: [seq] and [teacher_seq].
    """
    positions: NDArray[np.int64] = np.searchsorted(teacher_ends, student_ends, side="right").astype(np.int64) - 1
    return positions


def _window_starts(length: int, longest: int) -> Sequence[int]:
    """Where windows of a sequence begin that overlap by half; one window where it fits."""
    return range(0, max(1, length - longest // 2), max(1, longest // 2)) if length > longest else (0,)


def _continuation_bytes(data: bytes) -> int:
    """How many bytes at the beginning belong to a character that began before."""
    return next((count for count in range(min(3, len(data))) if data[count] & 0xC0 != 0x80), min(3, len(data)))
