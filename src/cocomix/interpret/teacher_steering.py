"""Steering a teacher: the edits of `ConceptEdit`, made to the latents of its dictionary ("GPT2-SAE" in the paper).

At the hooked block, the latents c of the hidden state h are edited to c' and h becomes h + decode(c') − decode(c). What
the dictionary cannot express stays in h, so an edit that changes no latent changes nothing, bit for bit.
"""

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cocomix.concepts import ConceptDictionary, ConceptTeacher
from cocomix.model import ConceptEdit
from cocomix.model.edits import PlacedEdit, check_edits, place_edits


@contextmanager
def teacher_steering(
    teacher: ConceptTeacher, edits: Sequence[ConceptEdit], *, rows_per_prompt: int = 1
) -> Iterator[PreTrainedModel]:
    """Every forward pass of the teacher within the block has its latents edited; its own `generate` works as usual.

    `"scale"`, `"add"` and `"set"` do to a latent what they do to a student's concept logit, `"ban"` makes it zero;
    `start` and `rows` mean the same. The edits hold in this thread alone, and end with the block, whatever happens.

    Args:
        rows_per_prompt: rows of the batch that belong to one row of the edits: with `generate`, the larger of
            `num_beams` and `num_return_sequences`.

    Raises:
        CoCoMixError: a concept does not exist; on a forward pass, a row does not exist.
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
    handles = [caller.register_forward_pre_hook(note_positions, with_kwargs=True) for caller in callers]
    try:
        with teacher.decoder.replaced(edit):
            yield model
    finally:
        for handle in handles:
            handle.remove()


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
