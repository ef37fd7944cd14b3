"""Mixers between the halves. The method's predicts concepts from the hidden state and turns them into a vector."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.model.concept_head import concept_head
from cocomix.model.configuration import CoCoMixConfig, Mixing
from cocomix.model.edits import PlacedEdit, apply_edits

__all__ = [
    "ConceptCompression",
    "ConceptIntervention",
    "ConceptMixer",
    "MixerOutput",
    "PauseMixer",
    "mixed_in",
    "normalise",
]

_EPSILON = 1e-5

ConceptIntervention = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(ids, values), each [batch, seq, k] → what is mixed in instead; measures how much a model relies on concepts."""


class MixerOutput(NamedTuple):
    """What a mixer yields.

    Attributes:
        mixed: input of the upper half. [batch, mixed_seq or seq, d_model]
        ids: the k concepts that were mixed in; `None` without concepts. [batch, seq, k], int64
        values: their logits, descending. [batch, seq, k]
        loss_sum: concept cross-entropy in nats, summed over labelled positions, or the distance of predicted hidden
            states, summed over positions; `None` without labels. []
        logits: all concept logits after edits, if asked for. [batch, seq, n_concepts]
    """

    mixed: Tensor
    ids: Tensor | None = None
    values: Tensor | None = None
    loss_sum: Tensor | None = None
    logits: Tensor | None = None


class Normalised(NamedTuple):
    """A hidden state over d_model brought to mean 0 and standard deviation 1, and what was taken out.

    Attributes:
        hidden: [batch, seq, d_model].
        mean: [batch, seq, 1].
        std: unbiased. [batch, seq, 1]
    """

    hidden: Tensor
    mean: Tensor
    std: Tensor


def normalise(hidden: Tensor) -> Normalised:
    """(h − μ)/(σ + 1e-5), with μ and σ. The released code's; the paper leaves it out."""
    mean = hidden.mean(-1, keepdim=True)
    std = hidden.std(-1, keepdim=True)  # unbiased
    return Normalised((hidden - mean) / (std + _EPSILON), mean, std)


def mixed_in(
    mixing: Mixing,
    hidden: Tensor,  # [batch, seq, d_model]
    compressed: Tensor,  # [batch, seq, d_model]
    pre_bias: Tensor,  # [d_model]
    normalised: Normalised,
    add_mean: bool = True,
) -> Tensor:  # [batch, mixed_seq or seq, d_model]
    """De-normalise a compressed prediction and mix it into the sequence (Eq. 3 and its other forms).

    Without `add_mean` the form "add" leaves out the mean, which the hidden state has already.
    """
    if mixing == "residual":
        vector = hidden + compressed * normalised.std
    else:
        vector = (compressed + pre_bias) * normalised.std
        if mixing != "add" or add_mean:
            vector = vector + normalised.mean
    vector = vector.to(hidden.dtype)
    return hidden + vector if mixing == "add" else interleaved(hidden, vector)


def interleaved(hidden: Tensor, vector: Tensor) -> Tensor:
    """(h_1, ĉ_1, h_2, ĉ_2, …): two [batch, seq, d_model] as one [batch, mixed_seq, d_model]."""
    return torch.stack((hidden, vector), dim=2).flatten(1, 2)


class ConceptCompression(nn.Module):
    """W_comp and b_comp of Eq. 3: sparse concept values to one vector, one embedding row per concept."""

    def __init__(self, num_concepts: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_concepts, d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(
        self,
        ids: Tensor,  # [batch, seq, k] int64
        values: Tensor,  # [batch, seq, k]
    ) -> Tensor:  # [batch, seq, d_model]
        """Σ_j values_j · weight[ids_j] + bias: the dense product W_comp·s + b_comp without its zeros."""
        # Gradients of the values exist in float32 alone on GPUs, so training sums there; parameters usually are anyway.
        dtype = torch.float32 if torch.is_grad_enabled() else self.weight.dtype
        bags = F.embedding_bag(
            ids.flatten(0, 1), self.weight.to(dtype), per_sample_weights=values.flatten(0, 1).to(dtype), mode="sum"
        )
        return bags.view(*ids.shape[:2], -1) + self.bias


class ConceptMixer(nn.Module):
    """Concept prediction (Eq. 2), compression and mixing (Eq. 3).

    With h the hidden state entering block `insert_layer` and μ, σ its mean and unbiased standard deviation over
    d_model: z = W_pred((h − μ)/(σ + 1e-5) − b_pre) + b_pred; s keeps the `concept_topk` largest entries of z;
    ĉ = (W_comp s + b_comp + b_pre)·σ + μ. The normalisation and b_pre are the released code's; the paper leaves them
    out. The residual form is ĉ = h + σ·(W_comp s + b_comp).
    """

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__()
        self.mixing = config.mixing
        self.add_mean = config.add_mean
        self.concept_topk = config.concept_topk
        self.chunk_size = config.head_chunk_size
        self.pre_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.predictor = nn.Linear(config.hidden_size, config.num_concepts)
        if self.mixing != "none":
            self.compression = ConceptCompression(config.num_concepts, config.hidden_size)

    def forward(
        self,
        hidden: Tensor,  # [batch, seq, d_model]
        concept_labels: Tensor | None = None,  # [batch, seq, k_attr] int64
        *,
        edits: Sequence[PlacedEdit] = (),
        intervention: ConceptIntervention | None = None,
        output_logits: bool = False,
    ) -> MixerOutput:
        """Predict the concepts of every position and mix them into the sequence."""
        normalised = normalise(hidden)
        ids, values, loss_sum, logits = self._predict(
            normalised.hidden - self.pre_bias, concept_labels, edits, output_logits
        )
        if intervention is not None:
            ids, values = intervention(ids, values)
        if self.mixing == "none":
            return MixerOutput(hidden, ids, values, loss_sum, logits)
        compressed = self.compression(ids, values)
        mixed = mixed_in(self.mixing, hidden, compressed, self.pre_bias, normalised, self.add_mean)
        return MixerOutput(mixed, ids, values, loss_sum, logits)

    def _predict(
        self, normalised: Tensor, concept_labels: Tensor | None, edits: Sequence[PlacedEdit], output_logits: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        batch, seq = normalised.shape[:2]
        weight: Tensor = self.predictor.weight
        bias: Tensor = self.predictor.bias
        device = normalised.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            normalised, weight, bias = normalised.to(dtype), weight.to(dtype), bias.to(dtype)
        flat_labels = None if concept_labels is None else concept_labels.flatten(0, 1).long()
        head = concept_head(normalised.flatten(0, 1), weight, bias, flat_labels, self.concept_topk, self.chunk_size)
        ids, values = head.ids.view(batch, seq, -1), head.values.view(batch, seq, -1)
        logits = F.linear(normalised, weight, bias) if output_logits else None
        if edits:
            touched = torch.stack([where for _, where in edits]).any(0)  # [batch, seq]; nothing changes elsewhere
            here = [PlacedEdit(edit, where[touched]) for edit, where in edits]
            edited = apply_edits(F.linear(normalised[touched], weight, bias), here)  # [touched, n_concepts]
            best, chosen = edited.topk(self.concept_topk, dim=-1)
            best = best.masked_fill(best == float("-inf"), 0.0)  # banned, and nothing else left to take its place
            slots = touched.unsqueeze(-1)
            ids, values = ids.masked_scatter(slots, chosen), values.masked_scatter(slots, best.to(values.dtype))
            logits = None if logits is None else logits.masked_scatter(slots, edited)
        return ids, values, None if concept_labels is None else head.loss_sum, logits


class PauseMixer(nn.Module):
    """One learned vector after every token: the upper half's extra positions without concepts (paper Fig. 6f)."""

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__()
        self.pause = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden: Tensor) -> MixerOutput:
        """Interleave [batch, seq, d_model] with the vector."""
        return MixerOutput(interleaved(hidden, self.pause.to(hidden.dtype).expand_as(hidden)))
