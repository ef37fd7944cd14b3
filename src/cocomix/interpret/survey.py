"""Concepts in ordinary text: which are mixed in and how strongly, and which outlive the token they are active at."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cocomix.concepts import ConceptTeacher
from cocomix.evaluation import inference
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError

__all__ = ["ConceptSurvey", "choose_concepts", "survey_concepts"]

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class ConceptSurvey:
    """How every concept behaves in a text.

    Attributes:
        positions: tokens of the text.
        window: tokens over which `persistence` looks ahead.
        mixed: positions at which the student mixes the concept in with a positive value. int64 [n_concepts]
        logit: mean of those values; of a concept that is never mixed in, the mean over all concepts. [n_concepts]
        latent: mean activation in the teacher's dictionary where it is active; likewise. [n_concepts]
        persistence: correlation of the activation at a token with its mean over the next `window`; 0 where either
            never varies. About 0: the concept belongs to single tokens; towards 1: to whole passages. [n_concepts]
    """

    positions: int
    window: int
    mixed: Tensor
    logit: Tensor
    latent: Tensor
    persistence: Tensor


def survey_concepts(
    student: CoCoMixForCausalLM,
    teacher: ConceptTeacher,
    input_ids: Tensor,
    *,
    window: int,
    position_ids: Tensor | None = None,
) -> ConceptSurvey:
    """Read a text with the student and with the teacher.

    Args:
        student: a model that mixes its concepts in.
        teacher: whose dictionary names them.
        input_ids: blocks of text. [blocks, seq]
        window: following tokens over which persistence averages; less than `seq`.
        position_ids: where the student keeps documents apart. [blocks, seq]
    """
    n_concepts = student.config.num_concepts
    mixed = torch.zeros(n_concepts, dtype=torch.int64)
    total = torch.zeros(n_concepts, dtype=torch.float64)
    correlation = _Correlation(n_concepts, window)
    active, activation = torch.zeros_like(mixed), torch.zeros_like(total)
    size = max(1, _TOKENS_AT_ONCE // input_ids.shape[1])
    with progress("reading concepts", len(input_ids), "blocks") as advance:
        for start in range(0, len(input_ids), size):
            batch = input_ids[start : start + size]
            positions = None if position_ids is None else position_ids[start : start + size].to(student.device)
            with inference(student, student.device, student.dtype):
                output = student(batch.to(student.device), position_ids=positions, use_cache=False, logits_to_keep=1)
                hidden = teacher.decoder.hidden_states(batch.to(teacher.decoder.device))
                codes = teacher.dictionary.encode(hidden)
                described = teacher.described(batch.to(hidden.device), None)
            values = output.concept_values.cpu().double()
            ids = output.concept_ids.cpu()[values > 0]
            mixed += torch.bincount(ids, minlength=n_concepts)
            total.index_add_(0, ids, values[values > 0])
            latents = (codes.values.clamp_min(0) * described.unsqueeze(-1)).cpu().double()
            latent_ids = codes.ids.cpu()
            active += torch.bincount(latent_ids[latents > 0], minlength=n_concepts)
            activation.index_add_(0, latent_ids[latents > 0], latents[latents > 0])
            for block_ids, block_latents in zip(latent_ids, latents, strict=True):
                correlation.add(block_ids, block_latents)
            advance(len(batch))
    return ConceptSurvey(
        positions=input_ids.numel(),
        window=window,
        mixed=mixed,
        logit=_means(total, mixed),
        latent=_means(activation, active),
        persistence=correlation.value(),
    )


def choose_concepts(survey: ConceptSurvey, scores: Tensor, count: int) -> tuple[int, ...]:
    """Concepts worth turning: those of the highest scores among those the student mixes in.

    Our choice, as in `steering_candidates`: of the concepts mixed in with a positive value, at no more than half of the
    positions. A concept that is always there works as a bias.

    Args:
        survey: of the student.
        scores: only concepts with a positive one are taken. [n_concepts]
        count: how many at most.

    Raises:
        CoCoMixError: there is none.
    """
    usable = (survey.mixed > 0) & (survey.mixed <= survey.positions / 2) & (scores > 0)
    ranked = scores.masked_fill(~usable, 0).argsort(descending=True, stable=True)
    chosen = tuple(concept for concept in ranked[:count].tolist() if usable[concept])
    if not chosen:
        raise CoCoMixError(
            "no concept that is mixed in with a positive value at half of the positions or fewer is a label, or "
            "persists; name some with --concepts."
        )
    return chosen


class _Correlation:
    """Correlation, concept by concept, of the activation v at a token with its mean f over the tokens that follow."""

    def __init__(self, n_concepts: int, window: int) -> None:
        self.window, self.count = window, 0
        self.sums = torch.zeros(5, n_concepts, dtype=torch.float64)  # of v, f, v², f², v·f

    def add(self, ids: Tensor, latents: Tensor) -> None:
        """Count a block: concepts [seq, width] and their activations. Only those active in it are held densely."""
        present, columns = torch.unique(ids, return_inverse=True)
        dense = torch.zeros(len(ids), len(present), dtype=torch.float64).scatter_add_(1, columns, latents)
        sums = dense.cumsum(0)
        v = dense[: -self.window]
        f = (sums[self.window :] - sums[: -self.window]) / self.window  # [seq − window, present]
        self.count += len(v)
        self.sums[:, present] += torch.stack([v, f, v * v, f * f, v * f]).sum(1)

    def value(self) -> Tensor:
        """0 where v or f is constant. [n_concepts]"""
        v, f, vv, ff, vf = self.sums / max(self.count, 1)
        variances = (vv - v * v).clamp_min(0) * (ff - f * f).clamp_min(0)
        return torch.where(variances > 0, (vf - v * f) / variances.clamp_min(1e-300).sqrt(), 0.0).clamp(-1, 1)


def _means(sums: Tensor, counts: Tensor) -> Tensor:
    """Sums over counts, the overall mean where nothing was counted. [n_concepts]"""
    overall = sums.sum() / counts.sum().clamp_min(1)
    return torch.where(counts > 0, sums / counts.clamp_min(1), overall)
