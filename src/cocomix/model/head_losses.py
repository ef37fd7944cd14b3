"""Losses of one chunk of logits, each with its gradient: what `cocomix.model.fused_head` sums up chunk by chunk.

Every function returns the loss in nats, summed over the chunk's positions, and the gradient with respect to its logits.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.runtime.ignore import IGNORE


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Losses and sums over positions are held in float32, in float64 where the inputs are."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def set_cross_entropy(
    padded: Tensor,
    n_concepts: int,
    labels: Tensor,
    softcap: float | None,
    with_gradient: bool,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Σ_t [logsumexp(z_t) − mean_{i∈I_t} z_{t,i}], in float32 or wider (paper Eq. 2).

    The normaliser comes out of the softmax that the gradient needs anyway: logsumexp(z) = max z − log max softmax(z).
    Our choice: fewer passes over [chunk, n_concepts] than `logsumexp` and `exp`, whose CPU kernel moreover takes
    twenty times as long where its results underflow (measured with logits of standard deviation 23).

    Args:
        padded: the logits and, behind them, columns that do not count, [chunk, width], contiguous. Used up: the
            gradient may lie where it was.
        n_concepts: columns that count.
        labels: [chunk, k_attr] int64, `IGNORE` where an entry is unused; a position without any does not count.
        softcap: the loss is that of softcap·tanh(z/softcap), as a language-model head of Gemma 2's kind has it.
        with_gradient: without it the second result is `None`.
        weights: of the entries, in the place of equal shares: Σ_t Σ_{i∈I_t} w_{t,i} (logsumexp(z_t) − z_{t,i}).
            [chunk, k_attr]
    """
    used = labels != IGNORE  # [chunk, k_attr]
    labelled = used.any(-1, keepdim=True)  # [chunk, 1]
    safe = labels.clamp_min(0)
    padded = padded.to(accumulation_dtype(padded))
    scores = padded[:, :n_concepts]
    slope = None if softcap is None else cap_(scores, softcap, with_slope=with_gradient)
    share = used.to(scores.dtype) / used.sum(-1, keepdim=True).clamp_min(1)  # [chunk, k_attr], 1/|I_t| where used
    if weights is not None:
        share = torch.where(used, weights.to(scores.dtype), 0.0)
        labelled = share.sum(-1, keepdim=True)
    picked = (scores.gather(-1, safe) * share).sum(-1, keepdim=True)  # [chunk, 1]
    highest = scores.amax(-1, keepdim=True)
    padded[:, n_concepts:] = float("-inf")
    torch.softmax(padded, -1, out=padded)  # row by row, so that it may be done in place; `scores` now holds it
    log_normaliser = highest - scores.amax(-1, keepdim=True).log()
    loss = ((log_normaliser - picked) * labelled if weights is None else log_normaliser * labelled - picked).sum()
    if not with_gradient:
        return loss, None
    gradient = scores.mul_(labelled).scatter_add_(-1, safe, -share)
    return loss, gradient if slope is None else gradient.mul_(slope)


def bag_of_words(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_t [Σ_v softplus(z_{t,v}) − Σ_{v∈bag_t} z_{t,v}] over positions with a bag, `labels` [chunk, size]."""
    used = labels != IGNORE
    counted, safe = used.any(-1, keepdim=True), labels.clamp_min(0)
    loss = (F.softplus(scores) * counted).sum() - (scores.gather(-1, safe) * used).sum()
    return loss, (scores.sigmoid() * counted).scatter_add_(-1, safe, -used.to(scores.dtype))


def cap_(logits: Tensor, softcap: float, *, with_slope: bool) -> Tensor | None:
    """Put softcap·tanh(z/softcap) in the place of logits z; its derivative, of the same shape, if asked for."""
    tanh = logits.div_(softcap).tanh_()
    slope = 1.0 - tanh.square() if with_slope else None
    logits.mul_(softcap)
    return slope


def divergence_of_all(scores: Tensor, teacher: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher ‖ student) from two sides' logits, [chunk, vocab] and [chunk, at most vocab].

    With p and q the two distributions, its gradient is q − p. Positions that are not `counted` [chunk] give nothing.
    """
    log_q = scores.log_softmax(-1)
    log_p = teacher.log_softmax(-1)
    p = log_p.exp()
    width = teacher.shape[-1]
    divergence = (p * (log_p - log_q[:, :width])).sum(-1)
    gradient = log_q.exp_()
    gradient[:, :width] -= p
    return _of_counted(divergence, gradient, counted)


def divergence_of_top(
    scores: Tensor, ids: Tensor, log_p: Tensor, counted: Tensor, *, complete: bool
) -> tuple[Tensor, Tensor]:
    """KL(teacher ‖ student) where the teacher gave its K largest probabilities `log_p` of tokens `ids`, [chunk, K].

    Everything else is one more outcome, the rest R (our choice): with p_R = 1 − Σ_{i∈K} p_i and likewise q_R,

        KL = Σ_{i∈K} p_i (log p_i − log q_i) + p_R (log p_R − log q_R),

    which is never above the KL over the whole vocabulary, and is that KL where K holds all of it (`complete`). Its
    gradient is q_i − p_i within K and q_i (1 − p_R/q_R) outside.
    """
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
    return _of_counted(divergence, gradient.scatter(-1, ids, picked.exp() - p), counted)


def _of_counted(divergence: Tensor, gradient: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    without = ~counted
    return divergence.masked_fill(without, 0.0).sum(), gradient.masked_fill_(without.unsqueeze(-1), 0.0)
