"""FLOPs of a teacher that runs while the student trains, by formula, per token."""

from typing import Literal

from torch import nn

from cocomix.concepts import ConceptTeacher
from cocomix.concepts.decoder import FrozenDecoder, decoder_blocks
from cocomix.labelling import LabelSettings
from cocomix.model.accounting import block_flops

__all__ = ["labelling_flops", "running_flops"]


def running_flops(decoder: FrozenDecoder, block_size: int, *, up_to: Literal["layer", "head"]) -> float:
    """Forward FLOPs per token: of the blocks up to the hooked one (`layer`), or of all blocks and the head (`head`).

    Args:
        decoder: the teacher.
        block_size: context in tokens, for causal attention.
        up_to: how far it runs.
    """
    blocks = decoder_blocks(decoder.model)
    config = decoder.model.config.get_text_config()
    if up_to == "layer":
        return block_flops(nn.ModuleList(list(blocks)[: decoder.layer + 1]), config, block_size)
    head = decoder.model.get_output_embeddings()
    return block_flops(blocks, config, block_size) + 2.0 * int(head.weight.numel())


def labelling_flops(teacher: ConceptTeacher, settings: LabelSettings, block_size: int) -> float:
    """FLOPs per token of labelling.

    Attribution runs the whole teacher forward, and backward from the loss to the hooked block with respect to
    activations alone, which costs what the forward pass of that part costs; the dictionary multiplies the hidden state
    with its C directions, and with `activation: pre` the gradient too. Other selections stop at the hooked block.
    """
    below = running_flops(teacher.decoder, block_size, up_to="layer")
    dictionary = 2.0 * teacher.n_concepts * teacher.decoder.d_model
    if settings.selection != "attribution":
        return below + dictionary
    whole = running_flops(teacher.decoder, block_size, up_to="head")
    return whole + (whole - below) + dictionary * (2 if settings.activation == "pre" else 1)
