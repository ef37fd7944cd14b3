"""The teacher of a run's labels as a reader: how much of each concept is in a text, and how fluent the text is.

A teacher of another tokenizer reads the text of the student's tokens, aligned by bytes as for its labels: a student's
token has the concepts of the last teacher's token that ends no later (`AlignedTexts`). How much of a concept is at a
token is the labeller's to say (`TeacherLabeller.present`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cocomix.concepts import (
    UNREAD,
    AlignedTeacher,
    ConceptLabeller,
    FittedLabeller,
    SparseCodes,
    TeacherLabeller,
    pad_right,
)
from cocomix.runtime.errors import CoCoMixError


class ReadText(NamedTuple):
    """A text as the teacher reads it.

    Attributes:
        tokens: the teacher's.
        places: of each new token of the text, the teacher's token that says its concepts; none where it read nothing.
        new: the first of `tokens` with something new in it.
    """

    tokens: list[int]
    places: NDArray[np.int64]
    new: int


class TextReader:
    """Reads the texts of a student, and those of the teacher itself.

    Args:
        labeller: with a teacher and a dictionary, of the student's tokenizer or aligned to it.

    Raises:
        CoCoMixError: it has tables to learn and has learned none.
    """

    def __init__(self, labeller: ConceptLabeller) -> None:
        self.aligned = labeller.texts if isinstance(labeller, AlignedTeacher) else None
        self._blocks = labeller.texts.blocks if isinstance(labeller, AlignedTeacher) else None
        inner = labeller.inner if isinstance(labeller, AlignedTeacher) else labeller
        assert isinstance(inner, TeacherLabeller)
        if isinstance(inner, FittedLabeller) and not inner.tables():
            raise CoCoMixError(
                f"labels of kind {inner.kind} are read with what was learned for them, which is in the label folder; "
                "put it back to where it was."
            )
        self._labeller = inner
        self.teacher = inner.teacher

    @property
    def context(self) -> int:
        """Longest text that the teacher reads, in its tokens."""
        return int(self.teacher.decoder.model.config.get_text_config().max_position_embeddings)

    def read(self, tokens: Sequence[int], given: int) -> ReadText:
        """A text in the student's tokens, of which the first `given` are not new."""
        if self.aligned is None:
            return self.read_own(tokens, given)
        text = self.aligned.read(np.array(tokens, dtype=np.int64), substitute=True)
        places = text.positions()[given:]
        new = int(np.searchsorted(text.ends, text.student_ends[given - 1], side="right"))
        return ReadText(text.tokens, places[places >= UNREAD], max(1, new))

    def read_own(self, tokens: Sequence[int], given: int) -> ReadText:
        """A text in the teacher's tokens, of which the first `given` are not new."""
        return ReadText(list(tokens), np.arange(given, len(tokens)), given)

    def begin(self, tokens: Sequence[int]) -> list[int]:
        """A text in the student's tokens as the teacher is to continue it, in its own."""
        if self.aligned is None:
            return list(tokens)
        return self.aligned.read(np.array(tokens, dtype=np.int64)).tokens or [self.aligned.teacher_end]

    @torch.no_grad()
    def measure(self, texts: Sequence[ReadText], concepts: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """What the teacher makes of the new part of texts.

        Returns:
            The loss in nats per teacher's token, NaN where there is nothing new that it can read [batch]; and of each
            text how much of each concept is at its new tokens [new, concepts].

        Raises:
            CoCoMixError: a text is longer than the teacher's context.
        """
        self.check_length(max(len(text.tokens) for text in texts))
        decoder = self.teacher.decoder
        batch, mask = pad_right([torch.tensor(text.tokens, device=decoder.device) for text in texts])
        hidden: list[Tensor] = []

        def keep(output: Tensor) -> Tensor:
            hidden.append(output)
            return output

        with decoder.replaced(keep):
            states, head = decoder.predictions(batch, mask, dtype=getattr(torch, self._labeller.dtype))
        codes = self._labeller.present(batch, self.teacher.dictionary.encode(hidden[0]))
        losses, found = [], []
        for row, (tokens, places, new) in enumerate(texts):
            at = torch.from_numpy(places).to(batch.device)
            there = codes.ids[row, at][..., None] == torch.tensor(concepts, device=batch.device)
            found.append((codes.values[row, at][..., None] * there).sum(1))
            before = states[row, new - 1 : len(tokens) - 1]
            logits = before if head is None else head(before.to(head.weight.dtype))
            losses.append(F.cross_entropy(logits.float(), batch[row, new : len(tokens)]))
        return torch.stack(losses), found

    def check_length(self, tokens: int) -> None:
        """Refuse a text that the teacher cannot read at once.

        Raises:
            CoCoMixError: it has more tokens than the context.
        """
        if tokens > self.context:
            raise CoCoMixError(
                f"a text of {tokens} tokens of the teacher does not fit its context of {self.context}; lower "
                "--prompt-tokens or --new-tokens."
            )

    @torch.no_grad()
    def survey(self, blocks: Tensor) -> tuple[SparseCodes, SparseCodes]:
        """Activations in blocks of the student's tokens, and how much of them counts as present. [positions, width]"""
        decoder = self.teacher.decoder
        tokens = (blocks if self._blocks is None else self._blocks(blocks)).to(decoder.device)
        hidden = decoder.hidden_states(tokens, dtype=getattr(torch, self._labeller.dtype))
        codes = self.teacher.dictionary.encode(hidden)
        pairs = (codes, self._labeller.present(tokens, codes))
        raw, present = (SparseCodes(ids.flatten(0, 1), values.flatten(0, 1)) for ids, values in pairs)
        return raw, present
