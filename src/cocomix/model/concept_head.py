"""The concept head: C logits per position, their top-k, and the multi-label cross-entropy (paper Eq. 2).

The head never holds all C logits of all positions: it works in chunks of positions. See `concept_head` for the
mathematics and `naive_concept_head` for the same in six lines.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cocomix.runtime.device import chunk_bytes
from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "IGNORE",
    "ConceptHeadOutput",
    "accumulate_outer",
    "accumulation_dtype",
    "cap_",
    "check_concept_labels",
    "concept_head",
    "naive_concept_head",
]

IGNORE = -100
"""Label value that means "no concept here", as in PyTorch's cross-entropy."""


class ConceptHeadOutput(NamedTuple):
    """What the head yields for N positions.

    Attributes:
        values: the k largest logits, descending. [N, k], dtype of the logits
        ids: their concepts. [N, k], int64
        loss_sum: concept cross-entropy in nats, summed over labelled positions; zero without labels. [], float32
            (float64 where the logits are)
    """

    values: Tensor
    ids: Tensor
    loss_sum: Tensor


def concept_head(
    hidden: Tensor,  # [N, d_model]
    weight: Tensor,  # [n_concepts, d_model]
    bias: Tensor | None,  # [n_concepts]
    labels: Tensor | None,  # [N, k_attr] int64, IGNORE where an entry is unused
    k: int,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> ConceptHeadOutput:
    """Concept logits z = hidden·weightᵀ + bias, their top-k, and Σ_t [logsumexp(z_t) − mean_{i∈I_t} z_{t,i}].

    A position counts when at least one of its labels is not `IGNORE`; the mean runs over its used labels. That is
    Eq. 2's (1/K_attr) Σ_i CE(z_t, i) with one logsumexp instead of K_attr.

    Memory is O(chunk_size · n_concepts) beyond inputs and outputs; with labels, one float32 matrix of the weight's
    shape is held until the backward pass. The loss is a sum of per-position terms, so its gradient with respect to
    `hidden`, `weight` and `bias` is finished during the forward pass, chunk by chunk, while the logits are at hand, and
    only scaled in the backward pass; the top-k values' gradient touches k rows per position. Our choice: three matrix
    products a step and no recomputation of logits.

    Args:
        hidden: normalised hidden states, in the dtype the matrix products shall use.
        weight: prediction matrix W_pred, cast to `hidden`'s dtype.
        bias: b_pred, if there is one.
        labels: target concepts; `None` skips the loss and its logsumexp.
        k: how many concepts to keep; 0 skips the top-k.
        chunk_size: positions per chunk; by default as many as keep a chunk's float32 logits within `chunk_bytes`.
        softcap: the loss is that of softcap·tanh(z/softcap), as a language-model head of Gemma 2's kind has it; the
            top-k values stay uncapped.
    """
    if chunk_size is None:
        chunk_size = max(1, chunk_bytes(weight.device) // (4 * weight.shape[0]))
    with_gradient = labels is not None and torch.is_grad_enabled()
    with_gradient = with_gradient and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    values, ids, loss_sum, *_ = _ConceptHead.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, k, chunk_size, softcap, with_gradient
    )
    return ConceptHeadOutput(values, ids, loss_sum)


def naive_concept_head(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor | None, k: int
) -> ConceptHeadOutput:
    """The slow twin of `concept_head`, for tests and benchmarks: all logits at once, plain autograd."""
    logits = F.linear(hidden, weight, bias)  # [N, n_concepts]
    values, ids = logits.topk(k, dim=-1)
    scores = logits.to(accumulation_dtype(logits))
    if labels is None:
        return ConceptHeadOutput(values, ids, scores.new_zeros(()))
    used = labels != IGNORE  # [N, k_attr]
    picked = scores.gather(-1, labels.clamp_min(0)) * used
    mean_picked = picked.sum(-1) / used.sum(-1).clamp_min(1)
    per_position = torch.logsumexp(scores, dim=-1) - mean_picked
    return ConceptHeadOutput(values, ids, (per_position * used.any(-1)).sum())


def check_concept_labels(labels: Tensor, num_concepts: int) -> None:
    """Refuse labels of concepts that do not exist. Reads the values, so on an accelerator it would wait for them.

    Raises:
        CoCoMixError: an entry is neither `IGNORE` nor one of 0 … num_concepts − 1.
    """
    wrong = labels[((labels < 0) & (labels != IGNORE)) | (labels >= num_concepts)]
    if wrong.numel() > 0:
        raise CoCoMixError(
            f"concept label {int(wrong[0])} does not exist in a model of {num_concepts} concepts: labels are 0 to "
            f"{num_concepts - 1}, or {IGNORE} for none; use labels of the dictionary that num_concepts was taken from."
        )


class _ConceptHead(torch.autograd.Function):
    """Chunked forward with the loss's gradients computed on the way; see `concept_head`.

    The gradients are outputs (not differentiable, dropped by the caller) because what `setup_context` saves must be an
    input or an output; that is what `torch.func` asks for.
    """

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor | None,
        k: int,
        chunk_size: int,
        softcap: float | None,
        with_gradient: bool,
    ) -> tuple[Tensor | None, ...]:
        positions = hidden.shape[0]
        accumulation = accumulation_dtype(hidden)
        values = hidden.new_empty(positions, k)
        ids = torch.empty(positions, k, dtype=torch.int64, device=hidden.device)
        loss_sum = torch.zeros((), dtype=accumulation, device=hidden.device)
        if with_gradient:
            loss_grad_hidden = torch.empty_like(hidden)
            loss_grad_weight = torch.zeros_like(weight, dtype=accumulation)
            loss_grad_bias = None if bias is None else torch.zeros_like(bias, dtype=accumulation)
        n_concepts = weight.shape[0]
        room = _room(min(chunk_size, positions), weight)
        for start in range(0, positions, chunk_size):
            rows = slice(start, min(start + chunk_size, positions))
            padded = room[: rows.stop - start]  # [chunk, width]
            logits = padded[:, :n_concepts]
            if bias is None:
                logits.addmm_(hidden[rows], weight.T, beta=0)  # 0: what lies there is ignored, be it NaN
            else:
                logits.copy_(bias).addmm_(hidden[rows], weight.T)
            if k > 0:
                torch.topk(logits, k, dim=-1, out=(values[rows], ids[rows]))
            if labels is None:
                continue
            chunk_loss, gradient = _loss_and_gradient(padded, n_concepts, labels[rows], softcap, with_gradient)
            loss_sum += chunk_loss
            if gradient is not None:
                grad_logits = gradient.to(hidden.dtype)
                torch.mm(grad_logits, weight, out=loss_grad_hidden[rows])
                accumulate_outer(loss_grad_weight, grad_logits, hidden[rows])
                if loss_grad_bias is not None:
                    loss_grad_bias += gradient.sum(0)
        if not with_gradient:
            return values, ids, loss_sum, None, None, None
        return values, ids, loss_sum, loss_grad_hidden, loss_grad_weight, loss_grad_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        hidden, weight, bias = inputs[:3]
        _, ids, _, *loss_gradients = output
        ctx.set_materialize_grads(False)  # what nobody asks for stays None, and costs nothing
        ctx.mark_non_differentiable(*(tensor for tensor in (ids, *loss_gradients) if tensor is not None))
        ctx.save_for_backward(hidden, weight, bias, ids, *loss_gradients)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_values: Tensor | None, _grad_ids: None, grad_loss: Tensor | None, *_unused: None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, *loss_gradients = ctx.saved_tensors
        accumulation = accumulation_dtype(hidden)
        gradients: list[Tensor | None] = [None, None, None]
        if grad_values is not None and ids.shape[1] > 0:
            # Top-k values: z_{t,i} for k concepts per position, so k rows of the weight take part.
            grad_values = grad_values.to(hidden.dtype)
            gradients[0] = F.embedding_bag(ids, weight, per_sample_weights=grad_values, mode="sum")
            gradients[1] = _scatter_outer(ids, grad_values, hidden, weight.shape[0])
            if bias is not None:
                zeros = torch.zeros_like(bias, dtype=accumulation)
                gradients[2] = zeros.index_add_(0, ids.flatten(), grad_values.flatten().to(accumulation))
        if grad_loss is not None:
            for index, of_loss in enumerate(loss_gradients):
                if of_loss is None:
                    continue
                scale, total = grad_loss.to(of_loss.dtype), gradients[index]
                gradients[index] = scale * of_loss if total is None else total.addcmul_(of_loss, scale)
        typed = (
            None if gradient is None or like is None else gradient.to(like.dtype)
            for gradient, like in zip(gradients, (hidden, weight, bias), strict=True)
        )
        return *typed, None, None, None, None, None


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Losses and sums over positions are held in float32, in float64 where the inputs are."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _room(rows: int, weight: Tensor) -> Tensor:
    """Room for the logits of a chunk, [rows, width] with width > n_concepts, uninitialised.

    Its rows are a little longer than they need be, and no power of two: on CPUs matrix products with such results and
    operands take 6% less time than with rows of 32,768 or 50,257 (our measurement), whose lines share cache sets.
    """
    return weight.new_empty(rows, -(-weight.shape[0] // 16) * 16 + 16)


def _loss_and_gradient(
    padded: Tensor, n_concepts: int, labels: Tensor, softcap: float | None, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The summed loss of one chunk, and its gradient with respect to the chunk's logits, both in float32 or wider.

    The normaliser comes out of the softmax that the gradient needs anyway: logsumexp(z) = max z − log max softmax(z).
    Our choice: fewer passes over [chunk, n_concepts] than `logsumexp` and `exp`, whose CPU kernel moreover takes
    twenty times as long where its results underflow (measured with logits of standard deviation 23).

    Args:
        padded: the logits and, behind them, columns that do not count, [chunk, width], contiguous. Used up: the
            gradient may lie where it was.
        n_concepts: columns that count.
        labels: [chunk, k_attr] int64.
        softcap: see `concept_head`.
        with_gradient: without it the second result is `None`.
    """
    used = labels != IGNORE  # [chunk, k_attr]
    labelled = used.any(-1, keepdim=True)  # [chunk, 1]
    safe = labels.clamp_min(0)
    padded = padded.to(accumulation_dtype(padded))
    scores = padded[:, :n_concepts]
    slope = None if softcap is None else cap_(scores, softcap, with_slope=with_gradient)
    share = used.to(scores.dtype) / used.sum(-1, keepdim=True).clamp_min(1)  # [chunk, k_attr], 1/|I_t| where used
    picked = (scores.gather(-1, safe) * share).sum(-1, keepdim=True)  # [chunk, 1]
    highest = scores.amax(-1, keepdim=True)
    padded[:, n_concepts:] = float("-inf")
    torch.softmax(padded, -1, out=padded)  # row by row, so that it may be done in place; `scores` now holds it
    log_normaliser = highest - scores.amax(-1, keepdim=True).log()
    loss = ((log_normaliser - picked) * labelled).sum()
    if not with_gradient:
        return loss, None
    gradient = scores.mul_(labelled).scatter_add_(-1, safe, -share)
    return loss, gradient if slope is None else gradient.mul_(slope)


def cap_(logits: Tensor, softcap: float, *, with_slope: bool) -> Tensor | None:
    """Put softcap·tanh(z/softcap) in the place of logits z; its derivative, of the same shape, if asked for."""
    tanh = logits.div_(softcap).tanh_()
    slope = 1.0 - tanh.square() if with_slope else None
    logits.mul_(softcap)
    return slope


def accumulate_outer(total: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """Add grad_logitsᵀ · hidden to `total`, accumulated in `total`'s dtype whatever the product's."""
    if hidden.dtype == total.dtype:
        total.addmm_(grad_logits.T, hidden)
    else:
        total += grad_logits.T @ hidden


def _scatter_outer(ids: Tensor, coefficients: Tensor, hidden: Tensor, num_concepts: int) -> Tensor:
    """Σ_t Σ_j coefficients[t, j] · onehot(ids[t, j]) ⊗ hidden[t], [num_concepts, d_model], float32 or wider.

    The embedding bag of `hidden`'s gradient transposed: a bag per concept, filled with the positions that chose it.
    """
    accumulation = accumulation_dtype(hidden)
    chosen, order = ids.flatten().sort()
    starts = torch.searchsorted(chosen, torch.arange(num_concepts, device=ids.device))
    weights = coefficients.flatten()[order].to(accumulation)
    return F.embedding_bag(
        order // ids.shape[1], hidden.to(accumulation), starts, per_sample_weights=weights, mode="sum"
    )
