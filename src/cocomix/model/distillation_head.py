"""Knowledge distillation: KL(teacher ‖ student) of the next token, without ever holding the logits of all positions.

The teacher's distribution comes whole, as what its vocabulary head reads (`FullTargets`), or as its K largest
probabilities (`TopTargets`). With these, everything else is one more outcome, the rest R (our choice): with p and q the
two distributions, p_R = 1 − Σ_{i∈K} p_i and likewise q_R,

    KL = Σ_{i∈K} p_i (log p_i − log q_i) + p_R (log p_R − log q_R),

which is never above the KL over the whole vocabulary, and is that KL where K holds all of it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cocomix.model.concept_head import accumulate_outer, accumulation_dtype, cap_
from cocomix.runtime.device import chunk_bytes

__all__ = ["FullTargets", "TopTargets", "distillation_loss", "divisor"]


class FullTargets(NamedTuple):
    """A teacher's next-token distributions: softmax of states · weightᵀ + bias.

    A teacher of a smaller vocabulary than the student's gives the tokens beyond it no probability.

    Attributes:
        states: what the teacher's head reads, or its logits where `weight` is `None`. [batch, seq, d_teacher or vocab]
        weight: of the teacher's head. [vocab, d_teacher]
        bias: of the teacher's head, if it has one. [vocab]
    """

    states: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None


class TopTargets(NamedTuple):
    """The K largest next-token probabilities of a teacher.

    Attributes:
        ids: their tokens. [batch, seq, K] int64
        log_probs: their logarithms, any float dtype. [batch, seq, K]
        complete: K is the whole vocabulary: the probabilities are brought to the sum 1, and there is no rest.
    """

    ids: Tensor
    log_probs: Tensor
    complete: bool = False


def distillation_loss(
    hidden: Tensor,  # [batch, seq, d_model or vocab]
    weight: Tensor | None,  # [vocab, d_model]
    targets: FullTargets | TopTargets,
    counted: Tensor,  # [batch, seq] bool
    num_items: Tensor | int | None = None,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> Tensor:  # []
    """KL(teacher ‖ student) in nats, averaged over the counted positions; differentiates the student alone.

    Everything of the vocabulary's width is made for one chunk of positions at a time, in float32, and the gradient is
    finished during the forward pass, as in `concept_head`. With respect to the student's logits it is q − p; for
    `TopTargets`, q_i − p_i within K and q_i (1 − p_R/q_R) outside.

    Args:
        hidden: what the student's language-model head reads; its logits where `weight` is `None`.
        weight: of the student's head, without a bias.
        targets: the teacher's, for the same positions.
        counted: positions with a target token.
        num_items: divisor of the summed divergence; by default the number of counted positions.
        chunk_size: positions per chunk; by default as many as keep both sides' float32 logits within `chunk_bytes`.
        softcap: of the logits that `weight` makes; see `concept_head`.
    """
    device = hidden.device.type
    if weight is not None and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    vocabulary = hidden.shape[-1] if weight is None else weight.shape[0]
    if chunk_size is None:
        chunk_size = max(1, chunk_bytes(hidden.device) // (8 * vocabulary))
    with_gradient = torch.is_grad_enabled() and (hidden.requires_grad or (weight is not None and weight.requires_grad))
    complete = isinstance(targets, TopTargets) and targets.complete
    tensors = targets[:2] if isinstance(targets, TopTargets) else targets
    flat = [tensor.flatten(0, 1) if tensor is not None and tensor.dim() == 3 else tensor for tensor in tensors]
    kl_sum, *_ = _Distillation.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, 1),
        weight,
        counted.flatten(),
        isinstance(targets, TopTargets),
        complete,
        chunk_size,
        None if weight is None else softcap,
        with_gradient,
        *flat,
    )
    loss: Tensor = kl_sum / divisor(counted, num_items)
    return loss


def divisor(counted: Tensor, num_items: Tensor | int | None) -> Tensor | int:
    """What a sum over counted positions is divided by: `num_items` if given, else their number (at least 1)."""
    return counted.sum().clamp_min(1) if num_items is None else num_items


class _Distillation(torch.autograd.Function):
    """Chunked forward with the gradients computed on the way; see `distillation_loss`, and `concept_head` for why."""

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor | None,
        counted: Tensor,
        top: bool,
        complete: bool,
        chunk_size: int,
        softcap: float | None,
        with_gradient: bool,
        *targets: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        kl_sum = torch.zeros((), dtype=accumulation_dtype(hidden), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_gradient else None
        grad_weight = None
        if with_gradient and weight is not None:
            grad_weight = torch.zeros_like(weight, dtype=accumulation_dtype(weight))
        for start in range(0, hidden.shape[0], chunk_size):
            rows = slice(start, min(start + chunk_size, hidden.shape[0]))
            logits = hidden[rows] if weight is None else F.linear(hidden[rows], weight)
            scores = logits.to(kl_sum.dtype)  # [chunk, vocab]
            slope = None if softcap is None else cap_(scores, softcap, with_slope=with_gradient)
            if top:
                ids, log_probs = (tensor[rows] for tensor in targets if tensor is not None)
                divergence, gradient = _kl_of_top(scores, ids, log_probs.to(scores.dtype), complete)
            else:
                states, head, bias = targets
                assert states is not None
                teacher = states[rows] if head is None else F.linear(states[rows], head, bias)
                divergence, gradient = _kl_of_all(scores, teacher.to(scores.dtype))
            kl_sum += divergence.masked_fill(~counted[rows], 0.0).sum()
            if grad_hidden is None:
                continue
            if slope is not None:
                gradient = gradient * slope
            grad_logits = gradient.masked_fill_(~counted[rows].unsqueeze(-1), 0.0).to(hidden.dtype)
            if weight is None or grad_weight is None:
                grad_hidden[rows] = grad_logits
            else:
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
                accumulate_outer(grad_weight, grad_logits, hidden[rows])
        return kl_sum, grad_hidden, grad_weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        _, grad_hidden, grad_weight = output
        ctx.dtypes = (inputs[0].dtype, None if inputs[1] is None else inputs[1].dtype)
        ctx.inputs = len(inputs)
        ctx.mark_non_differentiable(*(tensor for tensor in (grad_hidden, grad_weight) if tensor is not None))
        ctx.save_for_backward(grad_hidden, grad_weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sum: Tensor, *_unused: None) -> tuple[Tensor | None, ...]:
        scaled = (
            None if gradient is None else (grad_sum.to(gradient.dtype) * gradient).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, *(None for _ in range(ctx.inputs - 2))


def _kl_of_all(scores: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL per row [chunk] and its gradient [chunk, vocab], from two sides' logits."""
    log_q = scores.log_softmax(-1)
    log_p = teacher.log_softmax(-1)
    p = log_p.exp()
    width = teacher.shape[-1]
    divergence = (p * (log_p - log_q[:, :width])).sum(-1)
    gradient = log_q.exp_()
    gradient[:, :width] -= p
    return divergence, gradient


def _kl_of_top(scores: Tensor, ids: Tensor, log_p: Tensor, complete: bool) -> tuple[Tensor, Tensor]:
    """KL per row [chunk] over K tokens and the rest, and its gradient [chunk, vocab]."""
    if complete:
        log_p = log_p.log_softmax(-1)
    p = log_p.exp()  # [chunk, K]
    log_q = scores.log_softmax(-1)
    picked = log_q.gather(-1, ids)
    divergence = (p * (log_p - picked)).sum(-1)
    gradient = log_q.exp()
    if not complete:
        rest = (1.0 - p.sum(-1, keepdim=True)).clamp_min(torch.finfo(p.dtype).tiny)  # [chunk, 1]
        log_rest = log_q.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
        divergence = divergence + (rest * (rest.log() - log_rest)).squeeze(-1)
        gradient = gradient - rest * (log_q - log_rest).exp_()
    return divergence, gradient.scatter(-1, ids, picked.exp() - p)
