"""The concept head: C logits per position, their top-k, and the multi-label cross-entropy (paper Eq. 2).

The head never holds all C logits of all positions: it works in chunks of positions. See `concept_head` for the
mathematics and `naive_concept_head` for the same in six lines.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["IGNORE", "ConceptHeadOutput", "concept_head", "naive_concept_head"]

IGNORE = -100
"""Label value that means "no concept here", as in PyTorch's cross-entropy."""

_CHUNK_BYTES = 64 * 2**20


class ConceptHeadOutput(NamedTuple):
    """What the head yields for N positions.

    Attributes:
        values: the k largest logits, descending. [N, k], dtype of the logits
        ids: their concepts. [N, k], int64
        loss_sum: concept cross-entropy in nats, summed over labelled positions; zero without labels. [], float32
    """

    values: Tensor
    ids: Tensor
    loss_sum: Tensor


def concept_head(
    hidden: Tensor,  # [N, d_model]
    weight: Tensor,  # [n_concepts, d_model]
    bias: Tensor,  # [n_concepts]
    labels: Tensor | None,  # [N, k_attr] int64, IGNORE where an entry is unused
    k: int,
    chunk_size: int | None = None,
) -> ConceptHeadOutput:
    """Concept logits z = hidden·weightᵀ + bias, their top-k, and Σ_t [logsumexp(z_t) − mean_{i∈I_t} z_{t,i}].

    A position counts when at least one of its labels is not `IGNORE`; the mean runs over its used labels. That is
    Eq. 2's (1/K_attr) Σ_i CE(z_t, i) with one logsumexp instead of K_attr.

    Memory is O(chunk_size · n_concepts) beyond inputs and outputs. The loss is a sum of per-position terms, so its
    gradient with respect to `hidden`, `weight` and `bias` is finished during the forward pass, chunk by chunk, while
    the logits are at hand, and only scaled in the backward pass; the top-k values' gradient touches k rows per
    position. Our choice: three matrix products a step, the least there can be, and no recomputation of logits.

    Args:
        hidden: normalised hidden states, in the dtype the matrix products shall use.
        weight: prediction matrix W_pred, cast to `hidden`'s dtype.
        bias: b_pred.
        labels: target concepts; `None` skips the loss and its logsumexp.
        k: how many concepts to keep.
        chunk_size: positions per chunk; by default as many as keep a chunk's float32 logits within 64 MiB.
    """
    if chunk_size is None:
        chunk_size = max(1, _CHUNK_BYTES // (4 * weight.shape[0]))
    values, ids, loss_sum = _ConceptHead.apply(hidden, weight, bias, labels, k, chunk_size)  # type: ignore[no-untyped-call]
    return ConceptHeadOutput(values, ids, loss_sum)


def naive_concept_head(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor | None, k: int
) -> ConceptHeadOutput:
    """The slow twin of `concept_head`, for tests and benchmarks: all logits at once, plain autograd."""
    logits = F.linear(hidden, weight, bias)  # [N, n_concepts]
    values, ids = logits.topk(k, dim=-1)
    if labels is None:
        return ConceptHeadOutput(values, ids, logits.new_zeros((), dtype=torch.float32))
    used = labels != IGNORE  # [N, k_attr]
    picked = logits.float().gather(-1, labels.clamp_min(0)) * used
    mean_picked = picked.sum(-1) / used.sum(-1).clamp_min(1)
    per_position = torch.logsumexp(logits.float(), dim=-1) - mean_picked
    return ConceptHeadOutput(values, ids, (per_position * used.any(-1)).sum())


class _ConceptHead(torch.autograd.Function):
    """Chunked forward with the loss's gradients computed on the way; see `concept_head`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor | None, k: int, chunk_size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        positions = hidden.shape[0]
        values = hidden.new_empty(positions, k)
        ids = torch.empty(positions, k, dtype=torch.int64, device=hidden.device)
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with_gradient = labels is not None and any(ctx.needs_input_grad[:3])
        if with_gradient:
            loss_grad_hidden = torch.empty_like(hidden)
            loss_grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            loss_grad_bias = torch.zeros_like(bias, dtype=torch.float32)
        for start in range(0, positions, chunk_size):
            rows = slice(start, min(start + chunk_size, positions))
            logits = F.linear(hidden[rows], weight, bias)  # [chunk, n_concepts]
            torch.topk(logits, k, dim=-1, out=(values[rows], ids[rows]))
            if labels is None:
                continue
            chunk_loss, probabilities = _loss_and_gradient(logits, labels[rows], with_gradient)
            loss_sum += chunk_loss
            if probabilities is not None:
                grad_logits = probabilities.to(hidden.dtype)
                torch.mm(grad_logits, weight, out=loss_grad_hidden[rows])
                _accumulate_outer(loss_grad_weight, grad_logits, hidden[rows])
                loss_grad_bias += probabilities.sum(0)
        ctx.mark_non_differentiable(ids)
        ctx.has_labels = labels is not None
        saved = (loss_grad_hidden, loss_grad_weight, loss_grad_bias) if with_gradient else ()
        ctx.save_for_backward(hidden, weight, bias, ids, *saved)
        return values, ids, loss_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor, _grad_ids: None, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, *saved = ctx.saved_tensors
        grad_values = grad_values.to(hidden.dtype)
        # Top-k values: z_{t,i} for k concepts per position, so k rows of the weight take part.
        grad_hidden = F.embedding_bag(ids, weight, per_sample_weights=grad_values, mode="sum")
        grad_weight = _scatter_outer(ids, grad_values, hidden, weight.shape[0])
        grad_bias = torch.zeros_like(bias, dtype=torch.float32)
        grad_bias.index_add_(0, ids.flatten(), grad_values.flatten().float())
        if ctx.has_labels:
            loss_grad_hidden, loss_grad_weight, loss_grad_bias = saved
            grad_hidden = grad_hidden + grad_loss.to(hidden.dtype) * loss_grad_hidden
            grad_weight.addcmul_(loss_grad_weight, grad_loss)
            grad_bias.addcmul_(loss_grad_bias, grad_loss)
        return grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None, None, None


def _loss_and_gradient(logits: Tensor, labels: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The summed loss of one chunk, and its gradient with respect to the chunk's logits, both in float32."""
    used = labels != IGNORE  # [chunk, k_attr]
    labelled = used.any(-1, keepdim=True)  # [chunk, 1]
    safe = labels.clamp_min(0)
    share = used / used.sum(-1, keepdim=True).clamp_min(1)  # [chunk, k_attr], 1/|I_t| for used entries
    scores = logits.float()
    log_normaliser = torch.logsumexp(scores, dim=-1, keepdim=True)  # [chunk, 1]
    picked = (scores.gather(-1, safe) * share).sum(-1, keepdim=True)
    loss = ((log_normaliser - picked) * labelled).sum()
    if not with_gradient:
        return loss, None
    gradient = scores.sub(log_normaliser).exp_().mul_(labelled)  # softmax where labelled
    gradient.scatter_add_(-1, safe, -share)
    return loss, gradient


def _accumulate_outer(total: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """Add grad_logitsᵀ · hidden to `total`, accumulated in float32 whatever the product's dtype."""
    if hidden.dtype == torch.float32:
        total.addmm_(grad_logits.T, hidden)
    else:
        total += grad_logits.T @ hidden


def _scatter_outer(ids: Tensor, coefficients: Tensor, hidden: Tensor, num_concepts: int) -> Tensor:
    """Σ_t Σ_j coefficients[t, j] · onehot(ids[t, j]) ⊗ hidden[t], as a float32 [n_concepts, d_model] matrix."""
    total = torch.zeros(num_concepts, hidden.shape[1], dtype=torch.float32, device=hidden.device)
    rows = max(1, _CHUNK_BYTES // (4 * ids.shape[1] * hidden.shape[1]))
    for start in range(0, ids.shape[0], rows):
        part = slice(start, start + rows)
        outer = coefficients[part].float().unsqueeze(-1) * hidden[part].float().unsqueeze(1)
        total.index_add_(0, ids[part].flatten(), outer.flatten(0, 1))
    return total
