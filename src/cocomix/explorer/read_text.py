"""The text view's numbers: concepts at every token of a prompt, and the next token with and without them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cocomix.evaluation.reliance import zero
from cocomix.explorer.subject import Subject
from cocomix.interpret import PredictedConcept

__all__ = ["NextTokenShift", "TextReading", "TokenReading", "read_text"]

CONCEPTS_SHOWN, NEXT_TOKENS_SHOWN = 12, 8


class NextTokenShift(NamedTuple):
    """A likely continuation: its probability, and its probability when no concept is mixed in."""

    token: str
    probability: float
    without: float


@dataclass(frozen=True)
class TokenReading:
    """One token of a text.

    Attributes:
        token: its text.
        concepts: the strongest predictions, strongest first.
        next_tokens: the likeliest next tokens with concepts, likeliest first, and how likely they are without.
        divergence: KL divergence of the distribution with concepts from that without, in nats.
        strength: logit of the concept the text is coloured by; of the strongest if none was chosen.
        mixed_in: whether that concept is mixed in here.
    """

    token: str
    concepts: tuple[PredictedConcept, ...]
    next_tokens: tuple[NextTokenShift, ...]
    divergence: float
    strength: float
    mixed_in: bool


@dataclass(frozen=True)
class TextReading:
    """A text and what the model makes of it.

    Attributes:
        concept: the concept it is coloured by; `None` = at each token the strongest.
        tokens: its tokens.
        names: of the concepts that appear in it.
        mixes: whether the model mixes its concepts in at all; otherwise they change nothing.
    """

    concept: int | None
    tokens: tuple[TokenReading, ...]
    names: dict[int, str]
    mixes: bool


def read_text(subject: Subject, prompt: str, concept: int | None = None) -> TextReading:
    """Read a text with and without its concepts ("without": all their values are 0, as `cocomix eval` does).

    Raises:
        CoCoMixError: the text is empty or too long.
    """
    input_ids = subject.encode(prompt)
    with subject.computing() as model:
        output = model(input_ids=input_ids, use_cache=False, output_concept_logits=concept is not None)
        without = model(input_ids=input_ids, use_cache=False, concept_intervention=zero).logits[0]
        log_with, log_without = output.logits[0].float().log_softmax(-1), without.float().log_softmax(-1)
        divergence = (log_with.exp() * (log_with - log_without)).sum(-1).clamp_min(0)  # [seq]
        ids, values = output.concept_ids[0], output.concept_values[0]  # [seq, k]
        if concept is None:
            strength, mixed_in = values[:, 0], torch.ones_like(ids[:, 0], dtype=torch.bool)
        else:
            strength, mixed_in = output.concept_logits[0, :, concept], (ids == concept).any(-1)
        likely = _likely(log_with, log_without)
    shown = [
        [PredictedConcept(concept, value, rank) for rank, (concept, value) in enumerate(row, start=1)]
        for row in _pairs(ids, values)
    ]
    named = {predicted.id for row in shown for predicted in row}
    tokens = tuple(
        TokenReading(
            token=subject.tokenizer.decode([token]),
            concepts=tuple(shown[place]),
            next_tokens=tuple(
                NextTokenShift(subject.tokenizer.decode([follower]), *shares) for follower, *shares in likely[place]
            ),
            divergence=float(divergence[place]),
            strength=float(strength[place]),
            mixed_in=bool(mixed_in[place]),
        )
        for place, token in enumerate(input_ids[0].tolist())
    )
    names = subject.names(named if concept is None else named | {concept})
    return TextReading(concept, tokens, names, subject.model.config.form.mixes_in)


def _pairs(ids: Tensor, values: Tensor) -> Iterator[Iterator[tuple[int, float]]]:
    """Per position of [seq, k] each, its strongest (concept, logit) pairs."""
    for row_ids, row_values in zip(ids[:, :CONCEPTS_SHOWN].tolist(), values[:, :CONCEPTS_SHOWN].tolist(), strict=True):
        yield zip(row_ids, row_values, strict=True)


def _likely(log_with: Tensor, log_without: Tensor) -> list[list[tuple[int, float, float]]]:
    """Per position the likeliest tokens with concepts: (token, probability, probability without)."""
    best = log_with.topk(min(NEXT_TOKENS_SHOWN, log_with.shape[-1]), dim=-1).indices  # [seq, shown]
    columns = (best, log_with.gather(-1, best).exp(), log_without.gather(-1, best).exp())
    return [list(zip(*row, strict=True)) for row in zip(*(column.tolist() for column in columns), strict=True)]
