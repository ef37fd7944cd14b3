"""Floating-point operations of decoder blocks, by formula."""

from torch import nn
from transformers import PreTrainedConfig


def block_flops(blocks: nn.ModuleList, config: PreTrainedConfig, positions: int | None) -> float:
    """Forward FLOPs per position of a decoder's first blocks, of which `config` is the whole decoder's.

    Causal attention is that of sequences of `positions`; `None` leaves it out.
    """
    flops = product_flops(blocks)
    if positions is None:
        return flops
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    window: int = getattr(config, "sliding_window", None) or positions
    # Families without a list of layer types slide in every block, if at all.
    layer_types = getattr(config, "layer_types", None) or ["sliding_attention"] * len(blocks)
    for layer_type in layer_types[: len(blocks)]:
        reach = min(window, positions) if layer_type == "sliding_attention" else positions
        visible = reach * (positions - (reach - 1) / 2.0) / positions  # mean over the block's positions
        flops += 4.0 * heads * head_dim * visible
    return flops


def product_flops(module: nn.Module) -> float:
    """FLOPs of a module's matrix products for one position."""
    return 2.0 * sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)
