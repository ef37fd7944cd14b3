"""Approximate Likelihood Matching (ALM, arXiv 2503.20083): the likelihood of each chunk of text that is there.

A chunk is the text between two bytes at which tokens of both tokenizers end. With p and q its likelihoods under teacher
and student, the products over their own tokens, and p̃ = p^{1/τ}, q̃ = q^{1/τ}, τ = 100,

    L = (1/N) Σ_chunks τ [p̃ log(p̃/q̃) + (1 − p̃) log((1 − p̃)/(1 − q̃))].

The factor τ is ours: without it the divergence shrinks as 1/τ. For large τ a chunk's term becomes
a log(a/b) − a + b, with a and b the two negative log-likelihoods in nats.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.model import next_tokens
from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives.ahead import OnLogits
from cocomix.training.objectives.objective import Batch

TEMPERATURE = 100.0
_CERTAIN = -1e-4  # largest log-likelihood: of a chunk that is sure the divergence from another would be infinite


class ChunkLikelihood(OnLogits):
    """ALM on stored likelihoods (`cocomix distill --kind alm`) of chunks whose tokens are all targets."""

    name = "alm"
    needs = frozenset({"teacher_log_probs", "teacher_lengths"})

    def counted(self, batch: Batch) -> Tensor:
        """Positions before chunks."""
        return _chunks(batch)[-1]

    def summed(self, output: Any, batch: Batch, head: Any) -> Tensor:
        """`alm_loss`, per chunk."""
        targets, owner, inside, counted = _chunks(batch)
        logits = output.logits.float().flatten(0, 1)
        token_losses = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="none")
        student = _summed(-token_losses.view_as(targets) * inside, owner)[counted]
        return _binary_divergence(batch["teacher_log_probs"][counted].float(), student).sum()


def _chunks(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Next tokens, the position before the chunk that each may belong to, whether it does, and which chunks count.

    All [batch, seq]; a chunk counts at the position before it.
    """
    targets, lengths = next_tokens(batch["labels"], batch.get("attention_mask")), batch["teacher_lengths"]
    positions = torch.arange(lengths.shape[1], device=lengths.device).expand_as(lengths)
    owner = positions.where(lengths > 0, 0).cummax(1).values
    inside = positions - owner < lengths.gather(1, owner)
    present = _summed((inside & targets.ne(IGNORE)).long(), owner)
    return targets, owner, inside, (lengths > 0) & (present == lengths)


def _summed(values: Tensor, owner: Tensor) -> Tensor:
    """Sums over the positions of each owner, at the owner. [batch, seq]"""
    return torch.zeros_like(values).scatter_add(1, owner, values)


def _binary_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """τ·KL of (p̃, 1 − p̃) and (q̃, 1 − q̃) from the log-likelihoods of chunks. [chunks]"""
    log_p, log_q = (side.clamp_max(_CERTAIN) / TEMPERATURE for side in (teacher, student))
    log_not_p, log_not_q = (torch.log(-torch.expm1(side)) for side in (log_p, log_q))
    p = log_p.exp()
    return TEMPERATURE * (p * (log_p - log_q) + (1 - p) * (log_not_p - log_not_q))
