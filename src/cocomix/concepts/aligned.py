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

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocomix.concepts.aligned_texts import ALIGNMENT, AlignedTexts
from cocomix.concepts.labeller import ConceptLabeller, ConceptLabels
from cocomix.concepts.labellers.learned_tables import FittedTeacherLabeller
from cocomix.concepts.labellers.teacher_labeller import TeacherLabeller
from cocomix.concepts.token_rows import pad_right
from cocomix.runtime.ignore import IGNORE


class AlignedTeacher:
    """A labeller over the student's tokens, around a labeller over the teacher's tokens.

    Args:
        inner: labels the teacher's tokens.
        student: tokenizer of the blocks; must be invertible to bytes (see `TokenBytes`).
        teacher: tokenizer of the inner labeller; any fast tokenizer.
        max_length: longest sequence that the teacher reads, in its tokens. A longer block is read in windows that
            overlap by half, and a position is labelled by the window in which it has more context.
        tokenizers: fingerprints of both tokenizers by the names "student" and "teacher", for the labels' own.

    Raises:
        CoCoMixError: the student's tokenizer cannot be inverted to bytes.
    """

    def __init__(
        self,
        inner: ConceptLabeller,
        student: PreTrainedTokenizerFast,
        teacher: PreTrainedTokenizerFast,
        *,
        max_length: int,
        tokenizers: Mapping[str, str],
    ) -> None:
        self.inner = inner
        self.texts = AlignedTexts(student, teacher, max_length)
        self._tokenizers = dict(tokenizers)

    @property
    def num_concepts(self) -> int:
        """Concepts of the inner labeller's dictionary."""
        return self.inner.num_concepts

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        """Labels of the student's tokens.

        Args:
            input_ids: student's tokens, int64 [batch, seq].
            attention_mask: [batch, seq], 0 = padding, on the right; padding gets no labels.

        Returns:
            ids int64 [batch, seq, k], IGNORE where a position has no label, and the inner labeller's scores.
        """
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

    def having_read(self, hidden: Tensor) -> Self:
        """This labeller for one batch, with the hidden states [windows, length, d_model] of the teacher's windows.

        They are those of a pass over `AlignedTexts.windows` of the same blocks, padded on the right.
        """
        assert isinstance(self.inner, TeacherLabeller)
        return self._with(self.inner.having_read(hidden))

    def fingerprint(self) -> dict[str, str]:
        """The inner labeller's, both tokenizers and the version of the alignment."""
        tokenizers = {f"{side}_tokenizer": fingerprint for side, fingerprint in self._tokenizers.items()}
        return {**self.inner.fingerprint(), **tokenizers, "alignment": ALIGNMENT}

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

    def tables(self) -> dict[str, Tensor]:
        """The inner labeller's."""
        return self.inner.tables()

    def with_tables(self, tables: Mapping[str, Tensor]) -> Self:
        """See `FittedLabeller`."""
        return self._with(self.inner.with_tables(tables))
