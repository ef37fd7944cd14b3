"""`token_lookup`: the labels that a table from the current token alone gives (control for the token's identity).

For every token x the table holds the concepts with the largest mean activation E[c_i | x_t = x] over all positions of
a sample of the corpus that hold x, where a concept that is not active counts as 0. A student that gains as much from
these labels as from others has learned nothing of context from either.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cocomix.concepts.labeller import ConceptLabels
from cocomix.concepts.labellers.learned_tables import FittedTeacherLabeller, TokenSums
from cocomix.concepts.labellers.teacher_labeller import TeacherLabellerConfig
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE

TABLE_WIDTH = 32  # concepts kept per token: labels per position can be no more


class TokenLookupConfig(TeacherLabellerConfig):
    """Settings of `token_lookup`."""

    kind: Literal["token_lookup"] = "token_lookup"
    """The k concepts with the largest mean activation over all positions that hold the same token."""
    k: int = Field(default=4, ge=1, le=TABLE_WIDTH)
    """Labels per position."""
    sample_tokens: int = Field(default=2_000_000, ge=1)
    """Tokens of the training split that the means are taken over."""


class TokenLookupLabeller(FittedTeacherLabeller):
    """Labels looked up by the current token; scores are mean activations.

    The tables are `ids` int32 and `means` float32, [vocab, TABLE_WIDTH] each: per token its concepts, best first, then
    `IGNORE`. A token that the sample does not hold gets no labels. Positions without labels are those of the other
    kinds.
    """

    kind = "token_lookup"
    config_type: ClassVar = TokenLookupConfig

    def layouts(self) -> dict[str, tuple[torch.dtype, tuple[int, ...] | None]]:
        shape = (self.teacher.vocab_size, TABLE_WIDTH)
        return {"ids": (torch.int32, shape), "means": (torch.float32, shape)}

    def learned(self, sums: TokenSums) -> dict[str, Tensor]:
        vocab_size = self.teacher.vocab_size
        tokens, concepts = sums.keys // self.num_concepts, sums.keys % self.num_concepts
        means = (sums.sums / sums.counts[tokens]).float()
        order = means.argsort(descending=True, stable=True)  # equal means: the concept with the lower number first
        order = order[tokens[order].argsort(stable=True)]  # by token, then by falling mean
        tokens, concepts, means = tokens[order], concepts[order], means[order]
        sizes = torch.bincount(tokens, minlength=vocab_size)
        places = torch.arange(len(tokens)) - (sizes.cumsum(0) - sizes)[tokens]
        kept = places < TABLE_WIDTH
        ids = torch.full((vocab_size, TABLE_WIDTH), IGNORE, dtype=torch.int32)
        table = torch.zeros(vocab_size, TABLE_WIDTH)
        ids[tokens[kept], places[kept]] = concepts[kept].int()
        table[tokens[kept], places[kept]] = means[kept]
        return {"ids": ids, "means": table}

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        self.require_tables()
        if k > TABLE_WIDTH:
            raise CoCoMixError(f"token_lookup keeps {TABLE_WIDTH} concepts per token, so k must not be {k}.")
        labelled = self.teacher.labelled_positions(input_ids, attention_mask).cpu()[..., None]
        tokens = input_ids.cpu()
        ids = self._tables["ids"][tokens][..., :k].long().masked_fill(~labelled, IGNORE)
        return ConceptLabels(ids, self._tables["means"][tokens][..., :k].masked_fill(~labelled, 0.0))

    def flops_per_token(self, seq: int) -> float:
        return 0.0  # a table is read
