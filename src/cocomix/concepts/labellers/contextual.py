"""`contextual`: what context adds to a token (our choice; `attribution` has it as `centre_by_token`).

A concept that is active wherever a token occurs says no more than the token. With c_{t,i} the activation of concept i
at position t (0 where it is not active), the score is

    s_{t,i} = c_{t,i} − E[c_i | x_t],

the mean taken over all positions of a sample that hold the same token, and the labels are the k largest positive s.
The sum over these positions is divided by max(their number, 20), so that a rare token, whose mean would be its own few
activations, is hardly centred. Concepts that are not active at a position are no candidates there.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from cocomix.concepts.dictionary import SparseCodes
from cocomix.concepts.labeller import ConceptLabels
from cocomix.concepts.labellers.learned_tables import FittedTeacherLabeller, TokenSums
from cocomix.concepts.labellers.teacher_labeller import TeacherLabellerConfig
from cocomix.concepts.scoring import best_labels, criterion
from cocomix.runtime.errors import CoCoMixError

_FEW = 20  # positions below which a token's mean shrinks towards 0


class ContextualConfig(TeacherLabellerConfig):
    """Settings of `contextual`."""

    kind: Literal["contextual"] = "contextual"
    """The k concepts whose activation exceeds its mean over the positions of the same token by most."""
    sample_tokens: int = Field(default=2_000_000, ge=1)
    """Tokens of the training split that the means are taken over."""


class CentredLabeller(FittedTeacherLabeller):
    """Labels by scores minus their mean over the positions of a sample that hold the same token.

    The tables are the means: `keys` int64 [pairs], token · n_concepts + concept, rising, and `means` float32 [pairs];
    12 bytes a pair of token and concept that occur together.
    """

    _keys: Tensor
    _means: Tensor

    def layouts(self) -> dict[str, tuple[torch.dtype, tuple[int, ...] | None]]:
        return {"keys": (torch.int64, None), "means": (torch.float32, None)}

    def learned(self, sums: TokenSums) -> dict[str, Tensor]:
        positions = sums.counts[sums.keys // self.num_concepts].clamp(min=_FEW)
        return {"keys": sums.keys, "means": (sums.sums / positions).float()}

    def with_tables(self, tables: Mapping[str, Tensor]) -> Self:
        labeller = super().with_tables(tables)
        if len(keys := tables["keys"]) and int(keys[-1]) >= self.teacher.vocab_size * self.num_concepts:
            raise CoCoMixError(f"the means of {self.kind} are of another teacher or dictionary; label the data again.")
        device = self.teacher.decoder.device  # copied once, not for every batch
        labeller._keys, labeller._means = (tables[name].to(device) for name in ("keys", "means"))
        return labeller

    def centred(self, input_ids: Tensor, codes: SparseCodes) -> SparseCodes:
        """Scores minus their means, 0 where there was no score. [batch, seq, width]"""
        self.require_tables()
        if not len(self._keys):  # no concept was active in the sample
            return codes
        wanted = input_ids.to(codes.ids.device)[..., None] * self.num_concepts + codes.ids
        places = torch.searchsorted(self._keys, wanted).clamp(max=len(self._keys) - 1)
        values = codes.values - torch.where(self._keys[places] == wanted, self._means[places], 0.0)
        return SparseCodes(codes.ids, values.masked_fill(codes.values == 0, 0.0))

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        codes, labelled = self.scored(input_ids, attention_mask)
        codes = self.centred(input_ids, codes)
        return best_labels(codes, criterion(codes.values, self.settings.get("sign", "loss")), labelled, k)


class ContextualLabeller(CentredLabeller):
    """Labels by activation minus its mean over the positions of the same token, which is the score."""

    kind = "contextual"
    config_type: ClassVar = ContextualConfig
    reads_hidden = True

    def present(self, input_ids: Tensor, codes: SparseCodes) -> SparseCodes:
        centred = self.centred(input_ids, codes)
        return SparseCodes(centred.ids, centred.values.clamp_min(0))  # what exceeds its token's mean, as for a label
