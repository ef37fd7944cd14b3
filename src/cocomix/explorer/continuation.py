"""Continuing a text token by token, so that it can be shown while it grows and stopped at any token."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

__all__ = ["Forward", "Sampling", "choose_token", "continue_tokens"]

Forward = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""(tokens [1, seq], cache or None) → logits of the next token [vocab], float32, on the CPU, and the cache after it."""

_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        new_tokens: generate at most so many.
        temperature: divisor of the logits; 0 = always the likeliest token.
        top_k: sample among the k likeliest tokens; `None` = among all.
        seed: decides the sample.
    """

    new_tokens: int = 60
    temperature: float = 0.8
    top_k: int | None = 50
    seed: int = 0


def choose_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Sample a token from logits [vocab] by adding Gumbel noise and taking the largest.

    Our choice over inverting the cumulative distribution: with the same noise, two models whose distributions are alike
    choose the same token, so that texts of the same seed part only where steering changes something.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    scores = logits.double() / sampling.temperature
    uniform = torch.rand(len(scores), generator=generator, dtype=torch.float64)
    if sampling.top_k is not None and sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], float("-inf"))
    return int((scores - (-uniform.log()).log()).argmax())


def continue_tokens(
    forward: Forward, tokenizer: PreTrainedTokenizerBase, prompt: Tensor, sampling: Sampling
) -> Iterator[str]:
    """The continuation of a prompt so far, after every further token; ends with the document.

    Args:
        forward: the model.
        tokenizer: only tokens it knows are chosen.
        prompt: [1, seq], int64.
        sampling: how tokens are chosen.
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    before = tokenizer.decode(prompt[0], skip_special_tokens=True)
    tokens, chosen, cache = prompt, prompt[0].tolist(), None
    for number in range(sampling.new_tokens):
        logits, cache = forward(tokens, cache)
        token = choose_token(logits[: len(tokenizer)], sampling, generator)
        if token == tokenizer.eos_token_id:
            return
        chosen.append(token)
        tokens = torch.tensor([[token]])
        text = tokenizer.decode(chosen, skip_special_tokens=True)
        text = text[len(before) :] if text.startswith(before) else tokenizer.decode(chosen[prompt.shape[1] :])
        # A character whose last byte is still to come would flicker.
        yield text if number + 1 == sampling.new_tokens else text.rstrip(_REPLACEMENT)
