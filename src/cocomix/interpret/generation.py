"""Continuing tokens with any causal LM, decided by a seed alone."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from cocomix.evaluation import inference
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError

__all__ = ["check_sampling", "continue_tokens"]


def continue_tokens(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    end: int | None,
    max_new_tokens: int,
    edits: Sequence[ConceptEdit] = (),
    temperature: float = 1.0,
    top_k: int | None = 50,
    seed: int = 0,
    num_return_sequences: int = 1,
    stop_at_end: bool = True,
    vocab_size: int | None = None,
    advance: Callable[[float], None] = lambda amount: None,
) -> Tensor:
    """Prompts and what follows them; the caller's random state stays as it was.

    Args:
        model: a causal LM; with `edits`, a CoCoMix model.
        input_ids: prompts, padded on the left. int64 [batch, seq]
        attention_mask: 1 = token, 0 = padding. [batch, seq]
        end: the end-of-document token, also used as padding after it.
        max_new_tokens: generate at most so many tokens.
        edits: concepts to turn; rows are those of `input_ids`.
        temperature: divisor of the next-token logits; 0 = always the likeliest token.
        top_k: sample among the k likeliest tokens; `None` = among all.
        seed: of the sampling.
        num_return_sequences: continuations per prompt.
        stop_at_end: a text ends at `end`. Otherwise `end` is never drawn, and every text has `max_new_tokens` tokens.
        vocab_size: draw only tokens below it; by default any that the model has.
        advance: called with 1 after every token.

    Returns:
        int64 [batch · num_return_sequences, seq + new tokens].

    Raises:
        CoCoMixError: a number is out of range (see `check_sampling`), or an edit names a concept or row that is not
            there.
    """
    check_sampling(max_new_tokens, temperature, top_k, num_return_sequences)
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
    if not stop_at_end:
        settings["min_new_tokens"] = max_new_tokens
    if vocab_size is not None and vocab_size < model.config.vocab_size:
        settings["suppress_tokens"] = list(range(vocab_size, model.config.vocab_size))
    device = model.device
    forked = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
    with inference(model, device, model.dtype), forked:
        torch.manual_seed(seed)
        sequences: Tensor = model.generate(
            input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            num_return_sequences=num_return_sequences,
            pad_token_id=end,
            eos_token_id=end,
            stopping_criteria=StoppingCriteriaList([_Counted(advance)]),
            **settings,
        )
    return sequences.clone()  # usable outside inference mode


class _Counted(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing; told of every token, it tells `advance`."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self.advance = advance

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """No text ends here. [batch], bool"""
        self.advance(1)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None, num_return_sequences: int = 1) -> None:
    """Refuse numbers that no text can be generated with.

    Raises:
        CoCoMixError: naming the first of them.
    """
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
