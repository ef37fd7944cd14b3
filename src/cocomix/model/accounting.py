"""What a model costs: parameters, active parameters, and floating-point operations per token."""

import copy
import itertools
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from cocomix.model.backbone import backbone_of, blocks_of
from cocomix.model.configuration import CoCoMixConfig
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.runtime.flops import block_flops, product_flops


@dataclass(frozen=True)
class Accounting:
    """Cost of one model.

    Attributes:
        total_parameters: all parameters, tied ones once.
        active_parameters: parameters that take part in a token's forward pass: of the compression matrix only
            concept_topk rows, so that the concept layers count (C + concept_topk)·d_model (paper section 3).
        forward_flops_per_token: floating-point operations (2 per multiply-add) of a forward pass, per token.
    """

    total_parameters: int
    active_parameters: int
    forward_flops_per_token: float

    @property
    def training_flops_per_token(self) -> float:
        """Forward plus backward: three times the forward pass."""
        return 3.0 * self.forward_flops_per_token


def account(model: PreTrainedModel, block_size: int | None = None) -> Accounting:
    """Count a plain decoder's or a CoCoMix model's parameters and FLOPs per token by formula.

    FLOPs are those of the matrix products: 2·(weights of the blocks) per position, where a block of the upper half
    sees `passes` positions per token; 2·V·d for the head, 2·C·d for the concept logits and 2·k·d for the
    sparse compression, or 2·(weights) of what predicts and compresses hidden states. With `block_size` tokens of
    context, causal attention adds 4·heads·head_dim·(mean number of visible positions) per position and layer; sliding
    windows count as far as they reach. Element-wise work is left out.

    Args:
        model: may live on the meta device.
        block_size: context in tokens; `None` leaves attention scores out, as scaling-law papers often do.
    """
    total = count_parameters(model)
    if not isinstance(model, CoCoMixForCausalLM):
        flops = _decoder_flops(model.base_model, block_size)
        return Accounting(total, total, flops + product_flops(model.get_output_embeddings()))
    config = model.config
    flops = _decoder_flops(model.lower, block_size) + product_flops(model.lm_head)
    for width in config.passes:
        flops += width * _decoder_flops(model.upper, None if block_size is None else width * block_size)
    if model.predictor is not None:
        flops += product_flops(model.predictor)
    active = total - config.form.unread_parameters(config)
    if model.bigram is not None:  # of its table a token reads one row
        active -= (model.bigram.table.num_embeddings - 1) * config.hidden_size
    return Accounting(total, active, flops + config.form.flops_per_token(config, block_size))


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _decoder_flops(decoder: PreTrainedModel, positions: int | None) -> float:
    """Forward FLOPs of a decoder's blocks per position."""
    return block_flops(blocks_of(decoder), decoder.config, positions)


def build_model(config: PreTrainedConfig, attn_implementation: str | None = None) -> PreTrainedModel:
    """A freshly initialised model: CoCoMix for a `CoCoMixConfig`, otherwise the plain decoder (the NTP baseline)."""
    config = copy.deepcopy(config)
    if isinstance(config, CoCoMixConfig):
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        return CoCoMixForCausalLM(config)
    backbone_of(config)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)


def matched_config(
    config: CoCoMixConfig, by: Literal["matched", "flops"] = "matched", block_size: int | None = None
) -> PreTrainedConfig:
    """The baseline whose active parameters or FLOPs match a CoCoMix model's, by width alone.

    The baseline is the plain decoder, or a form like `mixing="pause"` itself (see `Mixing.widened`), which is matched
    to the model that predicts `num_concepts` concepts in its place. Hidden and feed-forward widths grow together;
    depth, heads and vocabulary stay. Of the widths that are multiples of `_width_step` and that the heads can share
    (see `_fits_heads`), the one with the nearest count is taken: our choice, which reproduces the paper's 624, 1072 and
    2096 for d = 512, 1024 and 2048.

    Args:
        config: of the CoCoMix model.
        by: `matched` for active parameters (paper section 3), `flops` for those of a forward pass: our choice, because
            interleaving doubles the positions of the upper half, which parameters do not show.
        block_size: context in tokens of the attention scores in those FLOPs; `None` leaves them out.
    """

    def size(model: PreTrainedModel) -> float:
        cost = account(model, block_size)
        return cost.active_parameters if by == "matched" else cost.forward_flops_per_token

    itself = config.form.widened(config)
    matched_to = copy.deepcopy(config)
    if itself:
        matched_to.mixing = "interleave"

    def baseline(width: int) -> PreTrainedConfig:
        backbone = _widened(config.backbone, width)
        if not itself:
            return plain_config(backbone, config.bigram_rows, config.head_chunk_size)
        wider = copy.deepcopy(config)
        wider.backbone = backbone
        return wider

    with torch.device("meta"):
        target = size(CoCoMixForCausalLM(matched_to))
        step = _width_step(config.hidden_size)
        first = -(-config.hidden_size // step) * step
        gaps: dict[int, float] = {}
        for width in filter(partial(_fits_heads, config.backbone), itertools.count(first, step)):
            gaps[width] = size(build_model(baseline(width))) - target
            if gaps[width] >= 0:
                break
        return baseline(min(gaps, key=lambda width: abs(gaps[width])))


def plain_config(backbone: PreTrainedConfig, bigram_rows: int | None, head_chunk_size: int | None) -> PreTrainedConfig:
    """A decoder without concepts: the stock one, or with a table of pairs of tokens."""
    if bigram_rows is None:
        return backbone
    return CoCoMixConfig(backbone, 0, mixing="plain", bigram_rows=bigram_rows, head_chunk_size=head_chunk_size)


def _width_step(hidden_size: int) -> int:
    """Steps in which widths are tried: 16 from d = 512 on, and about d / 32 below, where 16 would be too coarse."""
    return next((step for step in (16, 8, 4) if 32 * step <= hidden_size), 2)


def _fits_heads(backbone: PreTrainedConfig, width: int) -> bool:
    """Whether heads of width / heads dimensions can be built: rotary positions turn dimensions in pairs.

    A family whose head size does not come from its width, such as Gemma 3, takes any.
    """
    heads = backbone.num_attention_heads
    if not _head_follows_width(backbone):
        return True
    if width % heads:
        return False
    if backbone_of(backbone).position_embedding is not None:
        return True
    fraction = backbone.rope_parameters.get("partial_rotary_factor", 1.0)
    return int(width // heads * fraction) % 2 == 0


def _head_follows_width(backbone: PreTrainedConfig) -> bool:
    head_dim = getattr(backbone, "head_dim", None)
    return head_dim is None or head_dim * backbone.num_attention_heads == backbone.hidden_size


def _widened(backbone: PreTrainedConfig, width: int) -> PreTrainedConfig:
    """The same decoder at another hidden size; what is proportional to the hidden size stays so."""
    values = backbone.to_dict()
    old = backbone.hidden_size
    step = _width_step(old)
    if values.get("head_dim") is not None and _head_follows_width(backbone):
        values["head_dim"] = width // backbone.num_attention_heads
    for name in ("intermediate_size", "n_inner"):
        if values.get(name) is not None:
            values[name] = max(step, round(values[name] * width / old / step) * step)
    values["n_embd" if "n_embd" in values else "hidden_size"] = width
    return type(backbone)(**values)
