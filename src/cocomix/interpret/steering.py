"""Generating text with concepts turned up or down, and finding concepts that are worth turning."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix.errors import CoCoMixError
from cocomix.evaluation import inference
from cocomix.interpret.prompts import concept_model, encode
from cocomix.modeling import ConceptEdit
from cocomix.modeling.edits import check_edits

__all__ = ["FACTOR_LIMIT", "SteeringCandidate", "generate", "parse_steer", "steering_candidates"]

FACTOR_LIMIT = 100.0
"""Largest size of a steering value: ten times the paper's largest, our choice."""


def parse_steer(text: str) -> ConceptEdit:
    """Read `ID=FACTOR` as an edit that multiplies the concept's logit by FACTOR (paper section 5.3), e.g. `412=5`.

    Raises:
        CoCoMixError: it is not of this form, or the factor is not a number within ±100.
    """
    match = re.fullmatch(r"\s*(\d+)\s*=\s*(\S+)\s*", text)
    try:
        factor = float(match[2]) if match else math.nan
    except ValueError:
        match = None
    if match is None:
        raise CoCoMixError(f"cannot read {text!r} as a steering; write ID=FACTOR, for example 412=5 or 412=-2.5.")
    if not abs(factor) <= FACTOR_LIMIT:
        raise CoCoMixError(
            f"the factor of {text!r} must be a number between -{FACTOR_LIMIT:.0f} and {FACTOR_LIMIT:.0f}."
        )
    return ConceptEdit(int(match[1]), "scale", factor)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    edits: Sequence[ConceptEdit] = (),
    temperature: float = 1.0,
    top_k: int | None = 50,
    seed: int = 0,
    num_return_sequences: int = 1,
) -> list[str]:
    """Continue a prompt, with the given edits of concept logits at every position of prompt and continuation.

    Sampling is decided by `seed` alone and leaves the caller's random state as it was.

    Args:
        model: a CoCoMix model, or without `edits` any causal LM.
        tokenizer: the model's.
        prompt: at least one token of text.
        max_new_tokens: generate at most so many tokens; an end-of-document token ends a text earlier.
        edits: concepts to turn; see `ConceptEdit`.
        temperature: divisor of the next-token logits; 0 = always the likeliest token.
        top_k: sample among the k likeliest tokens; `None` = among all.
        seed: of the sampling.
        num_return_sequences: how many texts.

    Returns:
        The continuations, without the prompt.

    Raises:
        CoCoMixError: a number is out of range, the prompt is empty, prompt and continuation do not fit the context, a
            concept does not exist, or edits were given for a model that mixes no concepts in.
    """
    _check_numbers(max_new_tokens, temperature, top_k, num_return_sequences)
    if edits:
        _check_steering(model, edits)
    input_ids = encode(model, tokenizer, prompt, room=max_new_tokens)
    settings: dict[str, object] = {"concept_edits": tuple(edits)} if edits else {}
    if temperature == 0:
        settings["do_sample"] = False
    else:
        settings |= {
            "do_sample": True,
            "temperature": temperature,
            "top_k": 0 if top_k is None else top_k,
            "top_p": 1.0,
        }
    device = model.device
    forked = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
    with inference(model, device, model.dtype), forked:
        torch.manual_seed(seed)
        sequences = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max_new_tokens,
            num_return_sequences=num_return_sequences,
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **settings,
        )
    return [_continuation(tokenizer, input_ids[0], sequence) for sequence in sequences]


def _check_numbers(max_new_tokens: int, temperature: float, top_k: int | None, num_return_sequences: int) -> None:
    if max_new_tokens < 1:
        raise CoCoMixError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    if not 0.0 <= temperature < math.inf:
        raise CoCoMixError(f"temperature={temperature} must be a number not below 0 (0 = always the likeliest token).")
    if top_k is not None and top_k < 1:
        raise CoCoMixError(f"top_k={top_k} must be at least 1; leave it out to sample among all tokens.")
    if num_return_sequences < 1:
        raise CoCoMixError(f"num_return_sequences={num_return_sequences} must be at least 1.")
    if num_return_sequences > 1 and temperature == 0:
        raise CoCoMixError(
            f"temperature 0 yields the same text {num_return_sequences} times; raise it, or ask for one text."
        )


def _check_steering(model: PreTrainedModel, edits: Sequence[ConceptEdit]) -> None:
    """Refuse edits that the model cannot follow or that are far out of range."""
    check_edits(edits, concept_model(model, mixing=True).config.num_concepts)
    for edit in edits:
        if abs(edit.value) > FACTOR_LIMIT:
            raise CoCoMixError(
                f"the value {edit.value:g} of the edit of concept {edit.concept} is too large; "
                f"stay between -{FACTOR_LIMIT:.0f} and {FACTOR_LIMIT:.0f}."
            )


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: Tensor, sequence: Tensor) -> str:
    """What follows the prompt; decoded as a whole, so that a space or character across the border is kept."""
    whole: str = tokenizer.decode(sequence, skip_special_tokens=True)
    start: str = tokenizer.decode(prompt, skip_special_tokens=True)
    if whole.startswith(start):
        return whole[len(start) :]
    rest: str = tokenizer.decode(sequence[len(prompt) :], skip_special_tokens=True)
    return rest


@dataclass(frozen=True)
class SteeringCandidate:
    """A concept that changes what the model says.

    Attributes:
        concept: its index.
        share: of the positions, how many mix it in with a positive value.
        effect: mean KL divergence of the steered from the untouched next-token distribution, nats per position.
        raised: tokens whose mean probability rises most, each with the rise.
    """

    concept: int
    share: float
    effect: float
    raised: tuple[tuple[str, float], ...]


def steering_candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,  # [batch, seq]
    *,
    factor: float = 5.0,
    pool: int = 24,
    top_tokens: int = 5,
) -> list[SteeringCandidate]:
    """Measure which concepts change the model's predictions most when multiplied by `factor`.

    Our choice: of the concepts mixed in with a positive value (a factor turns a negative one down) at no more than half
    of the positions (one that is nearly always there works as a bias), the `pool` most frequent are tried one by one on
    a small batch. The effect is measured on next-token probabilities, not read off a weight.

    Args:
        model: a CoCoMix model that mixes its concepts in.
        tokenizer: the model's.
        input_ids: a few blocks of text.
        factor: multiplies the concept's logit, within ±100.
        pool: how many concepts to try; costs one forward pass each.
        top_tokens: tokens to name per concept.

    Returns:
        The concepts tried, largest effect first; none where no concept meets the conditions.

    Raises:
        CoCoMixError: the model mixes no concepts in, or the factor is out of range.
    """
    model = concept_model(model, mixing=True)
    input_ids = input_ids.to(model.device)
    with inference(model, model.device, model.dtype):
        untouched = model(input_ids=input_ids, use_cache=False)
        log_before = untouched.logits.float().log_softmax(-1).flatten(0, 1)  # [positions, vocab]
        positions = log_before.shape[0]
        positive = untouched.concept_ids[untouched.concept_values > 0]
        counts = torch.bincount(positive, minlength=model.config.num_concepts)
        counts = counts.masked_fill(counts > positions / 2, 0)
        frequent = counts.argsort(descending=True, stable=True)[:pool]
        found = []
        for concept in frequent[counts[frequent] > 0].tolist():
            edits = (ConceptEdit(concept, "scale", factor),)
            _check_steering(model, edits)
            steered = model(input_ids=input_ids, use_cache=False, concept_edits=edits)
            log_after = steered.logits.float().log_softmax(-1).flatten(0, 1)
            after = log_after.exp()
            rise = (after - log_before.exp()).mean(0)  # [vocab]
            best = rise.topk(min(top_tokens, len(rise)))
            found.append(
                SteeringCandidate(
                    concept=concept,
                    share=int(counts[concept]) / positions,
                    effect=float((after * (log_after - log_before)).sum(-1).mean()),
                    raised=tuple(
                        (tokenizer.decode([token]), amount)
                        for token, amount in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                        if amount > 0
                    ),
                )
            )
    return sorted(found, key=lambda candidate: -candidate.effect)
