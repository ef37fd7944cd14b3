"""The naive twin: the method's formulas transcribed line by line, with nothing left out and nothing shared.

It stands on the same GPT-2 blocks as `CoCoMixForCausalLM`, runs all of each, and computes the same numbers: all C
concept logits are held, every label has a cross-entropy of its own, the top-k is a dense mask and the compression a
dense product; labels come from a backward pass through the whole teacher, and from dense concept activations. Every
ratio to the naive twin is to this module; `tests/benchmarks/test_naive.py` proves that it computes what ours computes.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from cocomix.concepts import ConceptDictionary
from cocomix.concepts.decoder import decoder_blocks
from cocomix.model import CoCoMixForCausalLM

__all__ = ["NaiveStudent", "naive_compression", "naive_head", "naive_labels"]

_IGNORED = -100
_EPSILON = 1e-5


def naive_head(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 2 from concept logits [N, n_concepts] and labels [N, k_attr]: a cross-entropy per label, in nats.

    Averaged over a position's used labels, then over the positions that have any.
    """
    used = labels != _IGNORED  # [N, k_attr]
    each = [
        F.cross_entropy(logits.float(), column, ignore_index=_IGNORED, reduction="none") for column in labels.unbind(-1)
    ]
    per_position = torch.stack(each, dim=-1).sum(-1) / used.sum(-1).clamp_min(1)  # [N]
    return per_position.sum() / used.any(-1).sum().clamp_min(1)


def naive_compression(logits: Tensor, weight: Tensor, k: int) -> Tensor:
    """W_comp s of Eq. 3 from logits [..., n_concepts] and weight [n_concepts, d_model]: a dense mask and product."""
    mask = torch.zeros_like(logits).scatter_(-1, logits.topk(k, dim=-1).indices, 1.0)
    return (logits * mask) @ weight  # [..., d_model]


class NaiveStudent(nn.Module):
    """The training loss of an interleaving GPT-2 student, dense wherever the formulas are.

    Args:
        student: its weights are copied.
    """

    def __init__(self, student: CoCoMixForCausalLM) -> None:
        super().__init__()
        twin = copy.deepcopy(student)
        self.concept_loss_weight = student.config.concept_loss_weight
        self.token_embedding, self.position_embedding = twin.lower.wte, twin.lower.wpe
        self.lower, self.upper = _plain_blocks(twin.lower), _plain_blocks(twin.upper)
        self.predictor, self.mixing = twin.predictor, twin.mixing  # their parameters only
        self.final_norm, self.lm_head = twin.upper.ln_f, twin.lm_head

    def forward(
        self,
        input_ids: Tensor,  # [batch, seq]
        concept_labels: Tensor,  # [batch, seq, k_attr]
    ) -> Tensor:
        """Eq. 4. []"""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.token_embedding(input_ids) + self.position_embedding(positions)  # [batch, seq, d_model]
        for block in self.lower:
            hidden = block(hidden)
        mean, std = hidden.mean(-1, keepdim=True), hidden.std(-1, keepdim=True)
        normalised = (hidden - mean) / (std + _EPSILON) - self.predictor.pre_bias
        logits = F.linear(normalised, self.predictor.head.weight, self.predictor.head.bias)  # [batch, seq, n_concepts]
        concept_loss = naive_head(logits.flatten(0, 1), concept_labels.flatten(0, 1))

        compressed = naive_compression(logits, self.mixing.compression.weight, self.predictor.concept_topk)
        concept = (compressed + self.mixing.compression.bias + self.predictor.pre_bias) * std + mean
        mixed = torch.stack((hidden, concept.to(hidden.dtype)), dim=2).flatten(1, 2)  # [batch, 2·seq, d_model]
        for block in self.upper:
            mixed = block(mixed)
        vocabulary = self.lm_head(self.final_norm(mixed[:, 1::2])).float()  # [batch, seq, vocab]
        ntp_loss = F.cross_entropy(vocabulary[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
        return ntp_loss + self.concept_loss_weight * concept_loss


def _plain_blocks(half: PreTrainedModel) -> nn.ModuleList:
    """Blocks with the weights of a half's own, and nothing else of theirs."""
    blocks = nn.ModuleList(GPT2Block(half.config, layer_idx=index) for index in range(len(half.h)))
    blocks.load_state_dict(half.h.state_dict())
    return blocks.to(half.device)


def naive_labels(
    teacher: PreTrainedModel,
    dictionary: ConceptDictionary,
    layer: int,
    input_ids: Tensor,  # [batch, seq]
    k: int = 4,
) -> Tensor:
    """Eq. 1 as the released code means it: label ids [batch, seq, k], −100 where there is none.

    The teacher runs forwards and backwards as a whole, every weight gets a gradient, and the concepts' activations and
    attributions are dense.

    Args:
        teacher: its parameters must require gradients; their gradients are dropped at the end.
        dictionary: a layer-normed TopK dictionary that subtracts b_dec.
        layer: block whose output is read.
        input_ids: tokens without padding.
        k: labels per position.
    """
    captured: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        captured.append(output[0] if isinstance(output, tuple) else output)
        captured[0].retain_grad()

    handle = decoder_blocks(teacher)[layer].register_forward_hook(keep)
    try:
        teacher(input_ids, labels=input_ids, use_cache=False).loss.backward()
    finally:
        handle.remove()
    teacher.zero_grad(set_to_none=True)
    assert captured[0].grad is not None
    hidden, gradient = captured[0].detach().float(), captured[0].grad.float()  # [batch, seq, d_teacher]

    assert dictionary.k is not None
    normalised = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.std(-1, keepdim=True) + _EPSILON)
    before = (normalised - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc  # [batch, seq, n_concepts]
    mask = torch.zeros_like(before).scatter_(-1, before.topk(dictionary.k, dim=-1).indices, 1.0)
    attribution = (before * mask).relu() * (gradient @ dictionary.W_dec.T)
    attribution[:, -1] = 0.0  # nothing follows the last token
    scores, ids = attribution.topk(k, dim=-1)
    kept: Tensor = ids.masked_fill(scores <= 0, _IGNORED)
    return kept
