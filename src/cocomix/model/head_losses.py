"""Losses of a head's logits, summed over positions: what `cocomix.model.fused_head` adds up chunk by chunk.

Of a chunk, each gives the loss in nats, summed over the positions that count, and its gradient with respect to the
logits. A chunk's logits come with columns behind them that do not count, [chunk, at least width], contiguous.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.model.targets import FullTargets, TopTargets
from cocomix.runtime.ignore import IGNORE


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Losses and sums over positions are held in float32, in float64 where the inputs are."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class SetCrossEntropy(NamedTuple):
    """Cross-entropy against a set of labels per position (paper Eq. 2); a next token is a set of one.

    With weights of the entries in the place of equal shares that sum to 1 it is Σ_i w_i (logsumexp(z) − z_i), so that
    several targets, such as tokens further ahead, share one pass.
    """

    labels: Tensor  # `IGNORE` where an entry is unused. [N, k_attr] int64
    weights: Tensor | None = None  # [N, k_attr]

    def part(self, rows: slice) -> "SetCrossEntropy":
        """Of some positions."""
        return SetCrossEntropy(self.labels[rows], None if self.weights is None else self.weights[rows])

    def of_chunk(
        self, padded: Tensor, width: int, softcap: float | None, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Σ_t [logsumexp(z_t) − mean_{i∈I_t} z_{t,i}], in float32 or wider.

        The normaliser comes out of the softmax that the gradient needs anyway: logsumexp(z) = max z − log max
        softmax(z). Our choice: fewer passes over [chunk, width] than `logsumexp` and `exp`, whose CPU kernel moreover
        takes twenty times as long where its results underflow (measured with logits of standard deviation 23).

        Args:
            padded: the logits. Used up: the gradient may lie where they were.
            width: columns that count.
            softcap: the loss is that of softcap·tanh(z/softcap), as a language-model head of Gemma 2's kind has it.
            with_gradient: without it the second result is `None`.
        """
        used = self.labels != IGNORE  # [chunk, k_attr]
        labelled = used.any(-1, keepdim=True)  # [chunk, 1]
        safe = self.labels.clamp_min(0)
        padded = padded.to(accumulation_dtype(padded))
        scores = padded[:, :width]
        slope = None if softcap is None else _cap_(scores, softcap, with_slope=with_gradient)
        share = used.to(scores.dtype) / used.sum(-1, keepdim=True).clamp_min(1)  # [chunk, k_attr], 1/|I_t| where used
        if self.weights is not None:
            share = torch.where(used, self.weights.to(scores.dtype), 0.0)
            labelled = share.sum(-1, keepdim=True)
        picked = (scores.gather(-1, safe) * share).sum(-1, keepdim=True)  # [chunk, 1]
        highest = scores.amax(-1, keepdim=True)
        padded[:, width:] = float("-inf")
        torch.softmax(padded, -1, out=padded)  # row by row, so that it may be done in place; `scores` now holds it
        log_normaliser = highest - scores.amax(-1, keepdim=True).log()
        equal = self.weights is None
        loss = ((log_normaliser - picked) * labelled if equal else log_normaliser * labelled - picked).sum()
        if not with_gradient:
            return loss, None
        gradient = scores.mul_(labelled).scatter_add_(-1, safe, -share)
        return loss, gradient if slope is None else gradient.mul_(slope)


class BagOfWords(NamedTuple):
    """Binary cross-entropies Σ_v softplus(z_v) − Σ_{v∈bag} z_v of positions with a bag."""

    labels: Tensor  # every token of a bag once, `IGNORE` where an entry is unused. [N, size] int64

    def part(self, rows: slice) -> "BagOfWords":
        """Of some positions."""
        return BagOfWords(self.labels[rows])

    def of_chunk(self, padded: Tensor, width: int, softcap: float | None, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """As `SetCrossEntropy.of_chunk`, uncapped and always with the gradient."""
        scores, used = padded[:, :width].to(accumulation_dtype(padded)), self.labels != IGNORE
        counted, safe = used.any(-1, keepdim=True), self.labels.clamp_min(0)
        loss = (F.softplus(scores) * counted).sum() - (scores.gather(-1, safe) * used).sum()
        return loss, (scores.sigmoid() * counted).scatter_add_(-1, safe, -used.to(scores.dtype))


class Divergence(NamedTuple):
    """KL(teacher ‖ student)."""

    targets: FullTargets | TopTargets  # the teacher's distributions for the same positions, flat: [N, …]
    counted: Tensor  # positions with a target token, of which the teacher says something. [N] bool

    @classmethod
    def of_batch(cls, targets: FullTargets | TopTargets, counted: Tensor) -> "Divergence":
        """From targets [batch, seq, …] and positions with a target token [batch, seq]."""
        flat, counted = targets.each(lambda rows: rows.flatten(0, 1)), counted.flatten()
        return cls(flat, counted & flat.log_probs[:, 0].isfinite() if isinstance(flat, TopTargets) else counted)

    def part(self, rows: slice) -> "Divergence":
        """Of some positions."""
        return Divergence(self.targets.each(lambda each: each[rows]), self.counted[rows])

    def of_chunk(self, padded: Tensor, width: int, softcap: float | None, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """As `SetCrossEntropy.of_chunk`, always with the gradient."""
        scores, without = padded[:, :width].to(accumulation_dtype(padded)), ~self.counted
        slope = None if softcap is None else _cap_(scores, softcap, with_slope=True)
        divergence, gradient = self.targets.divergence(scores)
        gradient = gradient.masked_fill_(without.unsqueeze(-1), 0.0)
        return divergence.masked_fill(without, 0.0).sum(), gradient if slope is None else gradient.mul_(slope)


HeadLoss = SetCrossEntropy | BagOfWords | Divergence


def _cap_(logits: Tensor, softcap: float, *, with_slope: bool) -> Tensor | None:
    """Put softcap·tanh(z/softcap) in the place of logits z; its derivative, of the same shape, if asked for."""
    tanh = logits.div_(softcap).tanh_()
    slope = 1.0 - tanh.square() if with_slope else None
    logits.mul_(softcap)
    return slope
