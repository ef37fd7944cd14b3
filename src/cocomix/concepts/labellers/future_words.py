"""`future_words`: the rare words that come next, from the text alone (our choice; a reference for labels of a teacher).

Concepts are the entries of the vocabulary. Of the next `window` tokens of the same document, the labels are the k
distinct ones with the largest

    idf(w) · decay^distance,        idf(w) ≥ min_idf,

where the next token's distance is 1 and a token that comes twice counts where it comes first.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cocomix.concepts.dictionary import SparseCodes
from cocomix.concepts.labeller import ConceptLabels
from cocomix.concepts.labellers.future import FutureConfig, FutureLabeller
from cocomix.concepts.scoring import best_labels


class FutureWordsConfig(FutureConfig):
    """Settings of `future_words`."""

    kind: Literal["future_words"] = "future_words"
    """The k distinct of the next tokens that are the rarest and nearest."""
    decay: float = Field(default=0.9, gt=0, le=1)
    """By which a token counts less at every position further away."""
    min_idf: float = Field(default=4.0, ge=0)
    """Rarity below which a token is no label: 4 leaves out what stands in more than 1.8% of the documents."""


class FutureWordsLabeller(FutureLabeller):
    """Labels by idf · decay^distance, which is the score; the only table is `idf`."""

    kind = "future_words"
    config_type: ClassVar = FutureWordsConfig

    @property
    def num_concepts(self) -> int:
        return self.vocabulary.size

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        self.require_tables()
        tokens, same = self.ahead(input_ids, attention_mask)
        idf = self._tables["idf"][tokens]  # [batch, seq, window]
        wanted = same & (idf >= self.settings["min_idf"])
        for distance in range(1, self.window):
            wanted[..., distance:] &= tokens[..., distance:] != tokens[..., :-distance]
        nearness = self.settings["decay"] ** torch.arange(1, self.window + 1, device=self.device)
        scores = (idf * nearness).masked_fill(~wanted, 0.0)
        return best_labels(SparseCodes(tokens, scores), scores, same[..., 0], k)

    def flops_per_token(self, seq: int) -> float:
        return 0.0  # words are looked up and compared
