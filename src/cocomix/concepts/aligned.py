"""A teacher of another tokenizer: its labels, carried over to the student's tokens by bytes (method.md section 14).

The tokens of a block become bytes, document by document, the bytes a text, and the text tokens of the teacher, which
labels them as it labels any sequence. A student's token then gets the labels of the last teacher's token that ends no
later than it does:

    teacher    |The| white|house|
    student    |The| whi|te|house|        gets the labels of: The, The, white, house

So no byte after the student's token is read. Two exceptions belong to the teacher itself. With labels by attribution,
the loss looks one token ahead, here one token of the teacher. And where a tokenizer cuts a text depends on what
follows: that "white" is one token shows only at its end, which is why the student's "whi" does not get its labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocomix.concepts.labeller import ConceptLabeller, ConceptLabels
from cocomix.concepts.labellers.learned_tables import FittedTeacherLabeller
from cocomix.concepts.token_bytes import TokenBytes, TokenEnds, readable_text
from cocomix.runtime.ignore import IGNORE

ALIGNMENT = "1"
"""Version of the alignment; raised when labels or targets change, so that those of two versions are never mixed."""
UNREAD = 2
"""Positions at the beginning of a teacher's window of which nothing is used: they have no context, and the first one is
where attention that has nowhere to go is put (attention sink)."""


class AlignedText(NamedTuple):
    """A block's text in the teacher's tokens."""

    tokens: list[int]
    """The teacher's. [teacher_seq]"""
    ends: NDArray[np.int64]
    """The byte of the block at which each of them ends; an end-of-document token counts as one. [teacher_seq]"""
    student_ends: NDArray[np.int64]
    """The byte at which each of the student's tokens ends. [seq]"""
    readable: NDArray[np.bool_]
    """The student's tokens whose bytes the teacher has read; not those of a cut character. bool [seq]"""
    closing: NDArray[np.bool_]
    """The student's end-of-document tokens. bool [seq]"""

    def positions(self) -> NDArray[np.int64]:
        """Of the last teacher's token that ends no later than each of the student's; -1 where there is none. [seq]"""
        return np.where(self.readable, np.searchsorted(self.ends, self.student_ends, side="right") - 1, -1)

    def common(self) -> NDArray[np.int64]:
        """As `positions`, where both tokens end at the same byte; else -1. [seq]"""
        positions = self.positions()
        same = (positions >= 0) & (self.ends[positions] == self.student_ends) if self.tokens else positions >= 0
        return np.where(same, positions, -1)


class Window(NamedTuple):
    """A part of a text that the teacher reads at once."""

    row: int
    """Of the text."""
    start: int
    """Position of its first token in the text."""
    tokens: list[int]
    first: int
    """Position in the text from which the window is used."""


class AlignedTexts:
    """From a student's blocks to a teacher's tokens.

    Args:
        student: tokenizer of the blocks; must be invertible to bytes (see `TokenBytes`).
        max_length: longest sequence that the teacher reads, in its tokens. A longer block is read in windows that
            overlap by half, and a position is labelled by the window in which it has more context.
        fingerprints: of both tokenizers by the names "student" and "teacher", for what is made of the texts.

    Raises:
        CoCoMixError: the student's tokenizer cannot be inverted to bytes.
    """

    def __init__(
        self,
        student: PreTrainedTokenizerFast,
        teacher: PreTrainedTokenizerFast,
        max_length: int,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        self.student, self.teacher, self.max_length = student, teacher, max_length
        made_with = {f"{side}_tokenizer": value for side, value in (fingerprints or {}).items()}
        self.fingerprint = {**made_with, "alignment": ALIGNMENT}
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
        """The text of the student's blocks [batch, seq] as blocks of the teacher's tokens, int64 [blocks, length].

        What does not fill a block is left out, if there is more than one.
        """
        tokens = [token for row in input_ids.cpu().numpy() for token in self.read(row).tokens]
        length = max(1, min(input_ids.shape[1], self.max_length, len(tokens)))
        return torch.tensor(tokens[: len(tokens) // length * length], dtype=torch.int64).reshape(-1, length)

    def windows(self, texts: Sequence[AlignedText]) -> list[Window]:
        """What the teacher reads of some texts: a long one in windows that overlap by half.

        A later window is to overwrite what an earlier one gave to its second half, which has less context there.
        """
        found, longest, half = [], self.max_length, self.max_length // 2
        for row, (tokens, *_) in enumerate(texts):
            length = len(tokens)
            starts = range(0, max(1, length - half), max(1, half)) if length > longest else range(min(1, length))
            found += [Window(row, at, tokens[at : at + longest], at + (half if at else UNREAD)) for at in starts]
        return found


def _continuation_bytes(data: bytes) -> int:
    """How many bytes at the beginning belong to a character that began before."""
    return next((count for count in range(min(3, len(data))) if data[count] & 0xC0 != 0x80), min(3, len(data)))


class AlignedTeacher:
    """A labeller over the student's tokens, around a labeller over the teacher's tokens."""

    def __init__(self, inner: ConceptLabeller, texts: AlignedTexts) -> None:
        self.inner, self.texts, self.num_concepts = inner, texts, inner.num_concepts

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        """Labels of the student's tokens, with the inner labeller's scores; padding must be on the right."""
        rows = input_ids.cpu().numpy()
        lengths = [rows.shape[1]] * len(rows) if attention_mask is None else attention_mask.sum(dim=1).tolist()
        texts = [self.texts.read(row[:length]) for row, length in zip(rows, lengths, strict=True)]
        windows = self.texts.windows(texts)
        ids = torch.full((*input_ids.shape, k), IGNORE, dtype=torch.int64)
        if not windows:
            return ConceptLabels(ids, torch.zeros(*input_ids.shape, k))
        batch, mask = pad_right([torch.tensor(window.tokens) for window in windows])
        found = self.inner.label(batch, mask, k=k)
        scores = None if found.scores is None else torch.zeros(*input_ids.shape, k)
        for row, (index, start, tokens, first) in enumerate(windows):
            positions = texts[index].positions()  # of the teacher's token that labels each position, -1 = none
            covered = np.flatnonzero((positions >= first) & (positions < start + len(tokens)))
            source = torch.from_numpy(positions[covered] - start)
            ids[index, covered] = found.ids[row, source].cpu()
            if scores is not None and found.scores is not None:
                scores[index, covered] = found.scores[row, source].cpu()
        return ConceptLabels(ids, scores)

    def fingerprint(self) -> dict[str, str]:
        """The inner labeller's, both tokenizers and the version of the alignment."""
        return {**self.inner.fingerprint(), **self.texts.fingerprint}

    def flops_per_token(self, seq: int) -> float:
        """The inner labeller's, as if the teacher had as many tokens: the true number depends on the text."""
        return self.inner.flops_per_token(seq)

    def describe(self, concept: int) -> str | None:
        """What the inner labeller says of a concept."""
        return self.inner.describe(concept)

    def _with(self, inner: ConceptLabeller) -> Self:
        made = copy(self)
        made.inner = inner
        return made


class AlignedFittedTeacher(AlignedTeacher):
    """One whose inner labeller learns tables: it learns them from the same text in the teacher's tokens."""

    inner: FittedTeacherLabeller

    @property
    def sample_tokens(self) -> int:
        """How many of the data's tokens `fit` is to be given."""
        return self.inner.sample_tokens

    def fit(self, batches: Iterable[Tensor]) -> Self:
        """Learn from batches of the student's tokens, int64 [batch, seq] each."""
        return self._with(self.inner.fit(self.texts.blocks(batch) for batch in batches))

    def fit_flops_per_token(self, seq: int) -> float:
        """As `flops_per_token`, of the first pass."""
        return self.inner.fit_flops_per_token(seq)

    def tables(self) -> dict[str, Tensor]:
        """The inner labeller's."""
        return self.inner.tables()

    def with_tables(self, tables: Mapping[str, Tensor]) -> Self:
        """See `FittedLabeller`."""
        return self._with(self.inner.with_tables(tables))


def pad_right(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """One batch: tokens [batch, longest], and the mask [batch, longest] (1 = token), None if nothing is padded."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=tokens.device)
    if bool((lengths == tokens.shape[1]).all()):
        return tokens, None
    return tokens, (torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]).long()
