"""`random`: k of a position's active concepts, drawn by a hash (the control for attribution and activation).

Among the *active* concepts, because nobody could predict a draw from all of the dictionary. The draw depends on the
seed and on the tokens up to the position alone, not on batches, padding, processes or order, so that labels made while
training are those that `cocomix label` stores. All arithmetic is on 64-bit integers that wrap around.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from cocomix.concepts.dictionary import SparseCodes
from cocomix.concepts.labeller import ConceptLabels
from cocomix.concepts.labellers.teacher_labeller import TeacherLabeller, TeacherLabellerConfig
from cocomix.concepts.scoring import best_labels

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the increment of SplitMix64 (Steele, Lea & Flood, 2014)
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9, its first multiplier
_SECOND = -7723592293110705685  # 0x94D049BB133111EB, its second


class RandomConfig(TeacherLabellerConfig):
    """Settings of `random`."""

    kind: Literal["random"] = "random"
    """Any k of the active concepts."""
    seed: int = 0
    """Another seed is another draw."""


class RandomLabeller(TeacherLabeller):
    """Labels drawn among the active concepts, the most active first; scores are their activations."""

    kind = "random"
    config_type: ClassVar = RandomConfig
    reads_hidden = True

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        codes, labelled = self.teacher.active_concepts(input_ids, attention_mask, dtype=self.dtype)
        hashes = context_hashes(input_ids, attention_mask, self.settings["seed"]).to(codes.ids.device)
        drawn = draw(codes, hashes, k)
        return best_labels(drawn, drawn.values, labelled, k)


def context_hashes(input_ids: Tensor, attention_mask: Tensor | None, seed: int) -> Tensor:
    """A hash of the tokens up to each position, padding left out: int64 [batch, seq] to int64 [batch, seq].

    h_t = Σ_{s ≤ t} mix(mix(token_s) + s), plus a hash of the seed.
    """
    present = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    positions = present.cumsum(-1)
    start = _mix(torch.tensor(seed, dtype=torch.int64, device=input_ids.device))
    return (_mix(_mix(input_ids) + positions) * present).cumsum(-1) + start


def draw(codes: SparseCodes, contexts: Tensor, k: int) -> SparseCodes:
    """Up to k of the active concepts [..., width] of each position, each equally likely, in random order.

    By hashes of the contexts, int64 [...], as `context_hashes` gives them. Unused slots have the value 0.
    """
    ranks = _mix(_mix(codes.ids) + contexts.unsqueeze(-1)) >> 1  # [..., width], room below for the inactive
    ranks = ranks.masked_fill(codes.values <= 0, torch.iinfo(torch.int64).min)
    slots = ranks.topk(min(k, ranks.shape[-1]), dim=-1).indices
    return SparseCodes(codes.ids.gather(-1, slots), codes.values.gather(-1, slots))


def _mix(values: Tensor) -> Tensor:
    """SplitMix64's output function: neighbours come out unrelated."""
    values = values + _GOLDEN
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Logical shift to the right, of integers that PyTorch takes as signed."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
