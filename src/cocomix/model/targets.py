"""What a student learns from, position by position: next tokens, concept labels, a teacher's distributions; and how.

`cocomix.model.fused_head` adds losses up chunk by chunk. Of a chunk, each gives the loss in nats, summed over the
positions that count, and its gradient with respect to the logits. A chunk's logits come with columns behind them that
do not count, [chunk, at least width], contiguous.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE


class FullTargets(NamedTuple):
    """A teacher's next-token distributions: softmax of states · weightᵀ + bias.

    A teacher of a smaller vocabulary than the student's gives the tokens beyond it no probability.

    Attributes:
        states: what the teacher's head reads, or its logits where `weight` is `None`. [batch, seq, d_teacher or vocab]
        weight: of the teacher's head. [vocab, d_teacher]
        bias: of the teacher's head, if it has one. [vocab]
        softcap: of the teacher's logits, if they are capped.
    """

    states: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    softcap: float | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "FullTargets":
        """With what is of positions changed, such as `change=lambda rows: rows.flatten(0, 1)`."""
        return self._replace(states=change(self.states))

    def divergence(self, padded: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """KL(teacher ‖ student) at each position and its gradient, q − p of the two distributions.

        Args:
            padded: the student's logits, for as many flat positions as there are here. Used up. [N, at least width]
            width: columns that count.
        """
        scores = padded[:, :width]
        teacher = self.states if self.weight is None else F.linear(self.states, self.weight, self.bias)
        teacher = teacher.to(scores.dtype)
        if self.softcap is not None:
            teacher = torch.tanh(teacher / self.softcap) * self.softcap
        log_q = scores.log_softmax(-1)
        log_p = teacher.log_softmax(-1)
        p = log_p.exp()
        known = teacher.shape[-1]
        divergence = (p * (log_p - log_q[:, :known])).sum(-1)
        gradient = log_q.exp_()
        gradient[:, :known] -= p
        return divergence, gradient


class TopTargets(NamedTuple):
    """The K largest next-token probabilities of a teacher.

    Attributes:
        ids: their tokens. [batch, seq, K] int64
        log_probs: their logarithms, any float dtype; −∞ at positions of which the teacher says nothing (one of another
            tokenizer): these do not count. [batch, seq, K]
        complete: K is the whole vocabulary: the probabilities are brought to the sum 1, and there is no rest.
    """

    ids: Tensor
    log_probs: Tensor
    complete: bool = False

    def each(self, change: Callable[[Tensor], Tensor]) -> "TopTargets":
        """As `FullTargets.each`."""
        return self._replace(ids=change(self.ids), log_probs=change(self.log_probs))

    def divergence(self, padded: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """As `FullTargets.divergence`, where everything but the K tokens is one more outcome, the rest R (our choice).

        With p_R = 1 − Σ_{i∈K} p_i and likewise q_R,

            KL = Σ_{i∈K} p_i (log p_i − log q_i) + p_R (log p_R − log q_R),

        which is never above the KL over the whole vocabulary, and is that KL where K holds all of it (`complete`). Its
        gradient is q_i − p_i within K and q_i/q_R (q_R − p_R) outside. There q_i/q_R is a softmax of the logits outside
        K, so that nothing is lost where q_R is tiny, and half as many passes over the logits are made as with q.
        """
        scores = padded[:, :width]
        log_p = self.log_probs.to(scores.dtype)
        if self.complete:
            log_p = log_p.log_softmax(-1)
            log_q = scores.log_softmax(-1)
            picked, p = log_q.gather(-1, self.ids), log_p.exp()
            return (p * (log_p - picked)).sum(-1), log_q.exp_().scatter_(-1, self.ids, picked.exp() - p)
        p = log_p.exp()  # [N, K]
        rest = (1.0 - p.sum(-1, keepdim=True)).clamp_min(torch.finfo(p.dtype).tiny)  # [N, 1]
        picked = scores.gather(-1, self.ids)
        padded[:, width:] = float("-inf")
        highest = scores.scatter_(-1, self.ids, float("-inf")).amax(-1, keepdim=True)
        torch.softmax(padded, -1, out=padded)  # `scores` holds q_i/q_R now, 0 within K
        log_rest = highest - scores.amax(-1, keepdim=True).log()  # of all outside K, log Σ exp z
        log_normaliser = torch.logaddexp(picked.logsumexp(-1, keepdim=True), log_rest)
        picked, log_rest = picked - log_normaliser, log_rest - log_normaliser
        divergence = (p * (log_p - picked)).sum(-1) + (rest * (rest.log() - log_rest)).squeeze(-1)
        return divergence, scores.mul_(log_rest.exp() - rest).scatter_(-1, self.ids, picked.exp() - p)


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
        padded, without = padded.to(accumulation_dtype(padded)), ~self.counted
        slope = None if softcap is None else _cap_(padded[:, :width], softcap, with_slope=True)
        divergence, gradient = self.targets.divergence(padded, width)
        gradient = gradient.masked_fill_(without.unsqueeze(-1), 0.0)
        return divergence.masked_fill(without, 0.0).sum(), gradient if slope is None else gradient.mul_(slope)


HeadLoss = SetCrossEntropy | BagOfWords | Divergence


class Weighted(NamedTuple):
    """Several losses of the same logits, whose gradients are those of Σ weights · losses: all of them in one pass.

    Our choice: a pass for each would make the logits and their gradients' products n times. The sums come out one by
    one, [n], nats. Differentiate them in that combination alone, times any factor.
    """

    losses: tuple[HeadLoss, ...]
    weights: Tensor  # of the sums, not all 0. [n]

    @property
    def shares(self) -> Tensor:
        """The weights over the largest of them, so that float16 holds the gradient. [n]"""
        return self.weights / self.weights.abs().max()

    def part(self, rows: slice) -> "Weighted":
        """Of some positions."""
        return Weighted(tuple(each.part(rows) for each in self.losses), self.weights)

    def of_chunk(
        self, padded: Tensor, width: int, softcap: float | None, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `SetCrossEntropy.of_chunk`, sums [n] and the gradient of Σ shares · losses."""
        shares = self.shares.to(accumulation_dtype(padded)).unbind()
        sums, together = [], None
        for left, (loss, share) in enumerate(zip(self.losses, shares, strict=True), 1 - len(self.losses)):
            given = padded.clone() if left else padded  # each uses it up
            summed, gradient = loss.of_chunk(given, width, softcap, with_gradient)
            sums.append(summed)
            if with_gradient and gradient is not None:
                gradient.mul_(share)
                together = gradient if together is None else gradient.add_(together)
        return torch.stack(sums), together

    def scale(self, gradients: Tensor) -> Tensor:
        """What the gradient of `of_chunk` is multiplied by where that of the sums is `gradients`, [n]. []"""
        shares = self.shares.to(gradients.dtype)
        return (gradients @ shares) / (shares @ shares)


def _cap_(logits: Tensor, softcap: float, *, with_slope: bool) -> Tensor | None:
    """Put softcap·tanh(z/softcap) in the place of logits z; its derivative, of the same shape, if asked for."""
    tanh = logits.div_(softcap).tanh_()
    slope = 1.0 - tanh.square() if with_slope else None
    logits.mul_(softcap)
    return slope


def next_tokens(labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The token to predict at each position, `IGNORE` where there is none. [batch, seq] int64

    Args:
        labels: the tokens themselves, −100 where a token is no target. [batch, seq]
        attention_mask: 1 for tokens, 0 for padding, which predicts nothing. [batch, past + seq]
    """
    targets = F.pad(labels, (0, 1), value=IGNORE)[:, 1:]
    if attention_mask is not None:
        targets = targets.masked_fill(attention_mask[:, -labels.shape[1] :] == 0, IGNORE)
    return targets


def unpadded(concept_labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Concept labels [batch, seq, k_attr] without those of padding, whose mask [batch, past + seq] is 0."""
    if attention_mask is None:
        return concept_labels
    padding = attention_mask[:, -concept_labels.shape[1] :].to(concept_labels.device) == 0
    return concept_labels.masked_fill(padding.unsqueeze(-1), IGNORE)


def divisor(counted: Tensor, num_items: Tensor | int | None) -> Tensor | int:
    """What a loss summed over the counted positions [batch, seq] is divided by: `num_items`, or their number."""
    return counted.sum().clamp_min(1) if num_items is None else num_items


def check_label_shape(labels: Tensor, query: Tensor) -> None:
    """Refuse concept labels of another shape than [batch, seq, k_attr], with those of the input [batch, seq, …]."""
    if labels.dim() != 3 or labels.shape[:2] != query.shape[:2]:
        raise CoCoMixError(
            f"concept_labels has the shape {[*labels.shape]}, and the input {[*query.shape[:2]]}; pass [batch, seq, "
            f"k_attr], with {IGNORE} where a position has fewer labels."
        )


def check_concept_labels(labels: Tensor, query: Tensor | None, num_concepts: int) -> None:
    """Refuse labels of another shape than [batch, seq, k_attr], or of concepts outside 0 … num_concepts − 1.

    Values are looked at on the CPU only: an accelerator would have to wait for them.
    """
    if query is not None:
        check_label_shape(labels, query)
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = labels[((labels < 0) & (labels != IGNORE)) | (labels >= num_concepts)]
    if wrong.numel() > 0:
        raise CoCoMixError(
            f"concept label {int(wrong[0])} does not exist in a model of {num_concepts} concepts: labels are 0 to "
            f"{num_concepts - 1}, or {IGNORE} for none; use labels of the dictionary that num_concepts was taken from."
        )
