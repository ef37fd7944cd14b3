"""The last block, computed only where its output is read.

Where concepts are interleaved, the next token is read at the concept positions (paper section 3): the last block's
output at the token positions is thrown away. Token positions take part in the last block through their keys and values
alone, so its output projection and feed-forward network, three quarters of a block's parameters, need not run there.

The block is not rewritten. Four hooks change what its modules are given:

1. *before the block*: `hidden_states` is cut down to the concept positions, so that residual paths, norms and
   feed-forward network run on these; the normalised input of *all* positions travels on as one more keyword argument,
   which every supported family hands to its attention;
2. *before its attention*: the input is exchanged for that of all positions; projections, rotary tables, masks, caches
   and attention kernels work as ever;
3. *before the output projection*: the attention's result is cut down to the concept positions;
4. *after the block*: each result is put at both positions of its pair, so that the half's shapes stay what they are.

Queries of token positions are still computed: GPT-2, GPT-NeoX and Phi-3 project queries, keys and values at once, and
the attention kernels' causal form needs as many queries as keys.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["compute_last_block_at_concepts"]

_ALL_POSITIONS = "normed_input_of_all_positions"


def compute_last_block_at_concepts(block: nn.Module, attention: str, input_norm: str | None, projection: str) -> None:
    """Make a decoder block [batch, 2·seq, d_model] → [batch, 2·seq, d_model] compute its odd positions only.

    At odd positions the output equals the untouched block's, up to float rounding; every even position holds a copy of
    the odd one after it.

    Args:
        block: the last block of an upper half, any supported family; changed in place, by hooks.
        attention: name of the attention module in the block.
        input_norm: name of the norm before it; `None` where attention reads the block's input itself.
        projection: name of the output projection in the attention module.
    """
    block.register_forward_pre_hook(partial(_keep_concepts, input_norm), with_kwargs=True)
    block.register_forward_hook(_repeat_concepts)
    attending: nn.Module = getattr(block, attention)
    attending.register_forward_pre_hook(_see_all_positions, with_kwargs=True)
    getattr(attending, projection).register_forward_pre_hook(_project_concepts)


def _concepts(mixed: Tensor) -> Tensor:
    """The odd positions, [batch, 2·seq, …] to [batch, seq, …]."""
    return mixed[:, 1::2]


def _keep_concepts(
    input_norm: str | None, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hidden = args[0]
    normed = hidden if input_norm is None else getattr(block, input_norm)(hidden)
    return (_concepts(hidden), *args[1:]), {**kwargs, _ALL_POSITIONS: normed}


def _see_all_positions(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kwargs = dict(kwargs)
    every = kwargs.pop(_ALL_POSITIONS)
    if "hidden_states" in kwargs:
        return args, {**kwargs, "hidden_states": every}
    return (every, *args[1:]), kwargs


def _project_concepts(projection: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (_concepts(args[0]),)


def _repeat_concepts(block: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return torch.stack((output, output), dim=2).flatten(1, 2)
