"""Turning a person's text into tokens that a model can take, or saying why not."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix.data import begin_of_text
from cocomix.model import CoCoMixForCausalLM, predicts_concepts
from cocomix.runtime.errors import CoCoMixError

__all__ = ["concept_model", "encode", "encode_together", "visible"]


def encode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, room: int = 0) -> Tensor:
    """Tokens of a text on the model's device. [1, seq], int64

    They begin as the blocks that the model was trained on: with the begin-of-text token, if the tokenizer saved with it
    puts that there (see `cocomix prepare --prepend-bos`). No other special token is added.

    Args:
        model: the model that will read them.
        tokenizer: the model's.
        text: what to encode.
        room: tokens that will be generated after the text.

    Raises:
        CoCoMixError: the text is empty, does not fit the model's context (both lengths are given), or the tokenizer
            is not the model's.
    """
    if not text.strip():
        raise CoCoMixError("the text is empty; give at least one word.")
    begin = begin_of_text(tokenizer)
    ids: list[int] = [] if begin is None else [begin]
    ids += tokenizer.encode(text, add_special_tokens=False)
    context = model.config.max_position_embeddings
    if len(ids) + room > context:
        asked = f"{len(ids)} tokens" if room == 0 else f"{len(ids)} tokens and {room} more are to be generated"
        raise CoCoMixError(f"the text has {asked}, but the model's context is {context} tokens; shorten it.")
    if max(ids) >= model.config.vocab_size:
        raise CoCoMixError(
            f"the tokenizer yields token {max(ids)} but the model's vocabulary has {model.config.vocab_size} entries; "
            "use the tokenizer that was saved with the model."
        )
    return torch.tensor([ids], device=model.device)


def encode_together(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, room: int = 0
) -> tuple[Tensor, Tensor]:
    """Tokens and mask of several texts, padded on the left. Both int64 [batch, seq]; errors as in `encode`."""
    if not texts:
        raise CoCoMixError("there is no text to continue; give at least one.")
    rows = [encode(model, tokenizer, text, room=room)[0] for text in texts]
    longest = max(len(row) for row in rows)
    input_ids = torch.stack([F.pad(row, (longest - len(row), 0)) for row in rows])
    mask = torch.stack([F.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
    return input_ids, mask


def concept_model(model: PreTrainedModel, *, mixing: bool = False) -> CoCoMixForCausalLM:
    """The model, if it has concepts, and if asked for, mixes them in.

    Raises:
        CoCoMixError: it has no concepts, or they change nothing.
    """
    if isinstance(model, CoCoMixForCausalLM) and not predicts_concepts(model):
        raise CoCoMixError(
            f"this model has no concepts (mixing: {model.config.mixing}, prediction: {model.config.prediction}); use a "
            "run that predicts them."
        )
    if not isinstance(model, CoCoMixForCausalLM):
        raise CoCoMixError(
            f"this model ({type(model).__name__}) has no concepts; use a run with the objective cocomix."
        )
    if mixing and not model.config.form.mixes_in:
        raise CoCoMixError(
            'this model predicts concepts but mixes none in (mixing: "none"), so steering them changes nothing; use a '
            "run with another mixing."
        )
    return model


def visible(text: str) -> str:
    """A token's text with the invisible made visible: spaces as ·, line breaks as ↵, tabs as ⇥, the rest escaped."""
    shown = {" ": "·", "\n": "↵", "\t": "⇥"}
    return "".join(
        shown.get(letter) or (letter if letter.isprintable() else letter.encode("unicode_escape").decode())
        for letter in text
    )
