"""Generating text with concepts turned up or down, decided by a seed alone; in the student, or in its teacher.

A teacher is steered by the edits of `ConceptEdit`, made to the latents of its dictionary ("GPT2-SAE" in the paper): at
the hooked block, the latents c of the hidden state h are edited to c' and h becomes h + decode(c') − decode(c). What
the dictionary cannot express stays in h, so an edit that changes no latent changes nothing, bit for bit.
"""

import inspect
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from cocomix.concepts import ConceptDictionary, ConceptTeacher
from cocomix.evaluation import inference
from cocomix.interpret.inspection import concept_model, encode
from cocomix.model import CoCoMixForCausalLM, ConceptEdit
from cocomix.model.edits import Operation, PlacedEdit, check_edits, edits_in_force, place_edits
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError

FACTOR_LIMIT = 100.0
"""Largest size of a steering value: ten times the paper's largest, our choice."""

_STEER = re.compile(r"(\d+)\s*(?:(=|:=|\+|-)\s*([^\s@]+)|:\s*ban)\s*(?:@\s*(\d+))?")
_OPERATIONS: dict[str | None, Operation] = {"=": "scale", "+": "add", "-": "add", ":=": "set", None: "ban"}


def parse_steer(text: str) -> ConceptEdit:
    """Read an edit as the command line writes it.

    `412=5` multiplies the logit of concept 412 by 5 (paper section 5.3), `412+3` and `412-3` add to it, `412:=8` sets
    it, `412:ban` never lets the concept in; `@20` at the end lets the edit start at token 20 (from 0). Refused where it
    is not of this form, or the number is not within ±100.
    """
    match = _STEER.fullmatch(text.strip())
    sign, number = (None, "0") if match is None else (match[2], match[3] or "0")
    try:
        value = float(number) * (-1.0 if sign == "-" else 1.0)
    except ValueError:
        match = None
    if match is None:
        raise CoCoMixError(
            f"cannot read {text!r} as a steering; write ID=FACTOR, for example 412=5 or 412=-2.5 (or 412+3 to add, "
            "412:=8 to set, 412:ban to leave out; @20 at the end: from token 20 on)."
        )
    if not abs(value) <= FACTOR_LIMIT:
        raise CoCoMixError(f"the number in {text!r} must be between -{FACTOR_LIMIT:.0f} and {FACTOR_LIMIT:.0f}.")
    return ConceptEdit(int(match[1]), _OPERATIONS[sign], value, start=int(match[4] or 0))


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: generate at most so many.
        temperature: divisor of the next-token logits; 0 = always the likeliest token.
        top_k: sample among the k likeliest tokens; `None` = among all.
        num_return_sequences: texts per prompt.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int | None = 50
    seed: int = 0
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_return_sequences"):
            if getattr(self, name) < 1:
                raise CoCoMixError(f"{name}={getattr(self, name)} must be at least 1.")
        if not 0.0 <= self.temperature < math.inf:
            raise CoCoMixError(
                f"temperature={self.temperature} must be a number not below 0 (0 = always the likeliest token)."
            )
        if self.top_k is not None and self.top_k < 1:
            raise CoCoMixError(f"top_k={self.top_k} must be at least 1; leave it out to sample among all tokens.")
        if self.num_return_sequences > 1 and self.temperature == 0:
            raise CoCoMixError(
                f"temperature 0 yields the same text {self.num_return_sequences} times; raise it, or ask for one text."
            )


@contextmanager
def steering(model: PreTrainedModel, edits: Sequence[ConceptEdit]) -> Iterator[CoCoMixForCausalLM]:
    """Every forward pass and generation of the model within the block is steered, in this thread alone.

        with steering(model, [ConceptEdit(412, "scale", 5.0)]):
            model.generate(tokens, num_beams=4)

    Blocks nest: the inner one's edits are made after the outer one's. Steering ends with the block, whatever happens.
    Refused where the model has no concepts or mixes none in, a concept does not exist, or a value is beyond ±100.
    """
    steered = _check_steering(model, edits)
    with edits_in_force(steered, edits):
        yield steered


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[str],
    *,
    max_new_tokens: int = 64,
    edits: Sequence[ConceptEdit] = (),
    temperature: float = 1.0,
    top_k: int | None = 50,
    seed: int = 0,
    num_return_sequences: int = 1,
) -> list[str]:
    """Continue prompts, with the given edits of concept logits from their `start` on, in prompt and continuation.

    Sampling is decided by `seed` alone and leaves the caller's random state as it was. Refused where a number is out of
    range, a prompt is empty, prompt and continuation do not fit the context, a concept or a row does not exist, or
    edits were given for a model that mixes no concepts in.

    Args:
        model: a CoCoMix model, or without `edits` any causal LM.
        prompt: one text or several, each of at least one token; several are continued in one batch.
        max_new_tokens: generate at most so many tokens; an end-of-document token ends a text earlier. This and the
            following as in `Sampling`.
        edits: concepts to turn, in all rows or in those of some prompts; see `ConceptEdit`.

    Returns:
        The continuations, without the prompts: all of the first prompt, then all of the second, and so on.
    """
    sampling = Sampling(max_new_tokens, temperature, top_k, seed, num_return_sequences)
    if edits:
        _check_steering(model, edits)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not prompts:
        raise CoCoMixError("there is no text to continue; give at least one.")
    rows = [encode(model, tokenizer, text, room=max_new_tokens)[0] for text in prompts]
    end = tokenizer.eos_token_id
    with progress("generating", max_new_tokens, "tokens") as advance:
        sequences = continue_tokens(model, rows, sampling, end=end, edits=edits, advance=advance)
    longest = max(map(len, rows))
    return [
        continuation(tokenizer, ids, sequence[longest - len(ids) :])
        for ids, several in zip(rows, torch.split(sequences, num_return_sequences), strict=True)
        for sequence in several
    ]


def _check_steering(model: PreTrainedModel, edits: Sequence[ConceptEdit]) -> CoCoMixForCausalLM:
    """Refuse edits that the model cannot follow or that are far out of range."""
    steered = concept_model(model, mixing=True)
    check_edits(edits, steered.config.num_concepts)
    for edit in edits:
        if abs(edit.value) > FACTOR_LIMIT:
            raise CoCoMixError(
                f"the value {edit.value:g} of the edit of concept {edit.concept} is too large; "
                f"stay between -{FACTOR_LIMIT:.0f} and {FACTOR_LIMIT:.0f}."
            )
    return steered


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: Tensor, sequence: Tensor) -> str:
    """What follows the prompt; decoded as a whole, so that a space or character across the border is kept."""
    whole: str = tokenizer.decode(sequence, skip_special_tokens=True)
    start: str = tokenizer.decode(prompt, skip_special_tokens=True)
    if whole.startswith(start):
        return whole[len(start) :]
    rest: str = tokenizer.decode(sequence[len(prompt) :], skip_special_tokens=True)
    return rest


def continue_tokens(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],  # int64 [seq] each, on the model's device
    sampling: Sampling,
    *,
    end: int | None,  # the end-of-document token, also used as padding after it
    edits: Sequence[ConceptEdit] = (),
    stop_at_end: bool = True,  # otherwise `end` is never drawn, and every text has `max_new_tokens` tokens
    vocab_size: int | None = None,  # draw only tokens below it; by default any that the model has
    advance: Callable[[float], None] = lambda amount: None,  # called with 1 after every token
) -> Tensor:  # int64 [prompts · num_return_sequences, longest prompt + new tokens]
    """Prompts, padded on the left, and what follows them; what is not said here is as in `generate`."""
    input_ids, mask = (
        pad_sequence(list(rows), batch_first=True, padding_side="left")
        for rows in (prompts, map(torch.ones_like, prompts))
    )
    settings: dict[str, object] = {"concept_edits": tuple(edits)} if edits else {}
    settings["do_sample"] = sampling.temperature > 0
    if sampling.temperature > 0:
        settings |= {"temperature": sampling.temperature, "top_k": sampling.top_k or 0, "top_p": 1.0}
    if not stop_at_end:
        settings["min_new_tokens"] = sampling.max_new_tokens
    if vocab_size is not None and vocab_size < model.config.vocab_size:
        settings["suppress_tokens"] = list(range(vocab_size, model.config.vocab_size))
    device = model.device
    forked = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)

    def counted(ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        advance(1)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)  # no text ends here

    with inference(model, device, model.dtype), forked:
        torch.manual_seed(sampling.seed)
        sequences: Tensor = model.generate(
            input_ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_new_tokens,
            num_return_sequences=sampling.num_return_sequences,
            pad_token_id=end,
            eos_token_id=end,
            stopping_criteria=StoppingCriteriaList([counted]),
            **settings,
        )
    return sequences.clone()  # usable outside inference mode


@contextmanager
def teacher_steering(
    teacher: ConceptTeacher, edits: Sequence[ConceptEdit], *, rows_per_prompt: int = 1
) -> Iterator[PreTrainedModel]:
    """Every forward pass of the teacher within the block has its latents edited; its own `generate` works as usual.

    `"scale"`, `"add"` and `"set"` do to a latent what they do to a student's concept logit, `"ban"` makes it zero;
    `start` and `rows` mean the same. The edits hold in this thread alone, and end with the block, whatever happens. A
    concept that does not exist is refused, and on a forward pass a row.

    Args:
        rows_per_prompt: rows of the batch that belong to one row of the edits: with `generate`, the larger of
            `num_beams` and `num_return_sequences`.
    """
    check_edits(edits, teacher.n_concepts)
    owner, positions = threading.get_ident(), torch.empty(0)

    def note_positions(module: nn.Module, args: tuple[Any, ...], arguments: dict[str, Any]) -> None:
        nonlocal positions
        if threading.get_ident() == owner:
            positions = _positions(inspect.signature(module.forward).bind_partial(*args, **arguments).arguments)

    def edit(hidden: Tensor) -> Tensor:
        if threading.get_ident() != owner:
            return hidden
        assert positions.shape[-1] == hidden.shape[1], "the block ran without its model"
        rows = torch.arange(len(hidden), device=hidden.device) // rows_per_prompt
        return edit_latents(teacher.dictionary, hidden, place_edits(edits, positions.to(hidden.device), rows))

    model = teacher.decoder.model
    callers = {model, model.base_model}  # some models call their decoder past the base model, and some have no other
    with ExitStack() as hooked:
        for caller in callers:
            hooked.enter_context(caller.register_forward_pre_hook(note_positions, with_kwargs=True))
        with teacher.decoder.replaced(edit):
            yield model


def edit_latents(
    dictionary: ConceptDictionary,
    hidden: Tensor,  # [batch, seq, d_model]
    edits: Sequence[PlacedEdit],
) -> Tensor:  # [batch, seq, d_model]
    """Hidden states h + decode(c') − decode(c), where c' are the latents after the edits.

    Only the decoder rows of the edited concepts are read: the others' contributions cancel.
    """
    if not edits:
        return hidden
    touched = torch.stack([where for _, where in edits]).any(0)
    codes = dictionary.encode(hidden[touched])  # [touched, width]
    before = {edit.concept: (codes.values * (codes.ids == edit.concept)).sum(-1) for edit, _ in edits}  # [touched] each
    after = dict(before)
    for edit, where in edits:
        latent = after[edit.concept]
        after[edit.concept] = torch.where(where[touched], edit.edited(latent, banned=0.0), latent)
    concepts = list(before)
    change = torch.stack([after[concept] - before[concept] for concept in concepts], dim=-1)  # [touched, edited]
    difference = change @ dictionary.W_dec[concepts]  # [touched, d_model]
    _, statistics = dictionary.standardize(hidden[touched])
    if statistics is not None:
        difference = difference * statistics.std
    return hidden.masked_scatter(touched.unsqueeze(-1), hidden[touched] + difference.to(hidden.dtype))


def _positions(arguments: dict[str, Any]) -> Tensor:
    """Positions of a forward pass's tokens in their rows, padding left out. [batch or 1, seq]"""
    if arguments.get("position_ids") is not None:
        found: Tensor = arguments["position_ids"]
        return found
    tokens = arguments["input_ids"] if arguments.get("input_ids") is not None else arguments["inputs_embeds"]
    seq = tokens.shape[1]
    if arguments.get("attention_mask") is not None:
        mask: Tensor = arguments["attention_mask"]
        return (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -seq:]
    cache = arguments.get("past_key_values")
    past = 0 if cache is None else cache.get_seq_length()
    return torch.arange(past, past + seq).unsqueeze(0)
