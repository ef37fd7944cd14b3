"""Splitting a stock Hugging Face decoder in two.

A decoder of L blocks becomes **lower** (embeddings, blocks [0, l), final norm replaced by the identity) and **upper**
(blocks [l, L) and the final norm, fed through `inputs_embeds`). Both are unmodified instances of the decoder's own
class, so attention kernels, rotary tables, masks, sliding windows and caches stay Hugging Face's.
"""

import copy
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from cocomix.runtime.errors import CoCoMixError


@dataclass(frozen=True)
class Backbone:
    """Where a decoder family keeps the parts that a split touches, by their attributes."""

    blocks: str = "layers"  # the list of decoder blocks
    final_norm: str = "norm"  # after the last block
    token_embedding: str = "embed_tokens"
    position_embedding: str | None = None  # learned and added to `inputs_embeds`, if the family has one
    input_dropout: str | None = None  # on the embeddings, if the family has one
    scaled_embeddings: bool = False  # whether the family multiplies embeddings by √d_model itself
    depth_scaled_init: tuple[str, ...] = ()  # suffixes of parameters that start with a standard deviation ∝ 1/√L


SUPPORTED_BACKBONES: dict[str, Backbone] = {
    "gpt2": Backbone(
        blocks="h",
        final_norm="ln_f",
        token_embedding="wte",
        position_embedding="wpe",
        input_dropout="drop",
        depth_scaled_init=("c_proj.weight",),
    ),
    "gpt_neox": Backbone(final_norm="final_layer_norm", token_embedding="embed_in", input_dropout="emb_dropout"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), Backbone()),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), Backbone(scaled_embeddings=True)),
    **dict.fromkeys(("olmo2", "olmo3", "smollm3", "phi3"), Backbone()),
}
"""Decoder families that are tested (split ≡ plain, caches, padding, saving, a training step), by `model_type`."""

_PER_LAYER_FIELDS = ("layer_types", "no_rope_layers")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


class _NoPositions(nn.Module):
    """Stands in for a learned position embedding in the upper half, whose input already carries positions."""

    def forward(self, position_ids: Tensor) -> Tensor:
        return torch.zeros((), device=position_ids.device)


def backbone_of(config: PreTrainedConfig) -> Backbone:
    """The family of a decoder configuration; others, and settings that do not survive the split, are refused."""
    family = SUPPORTED_BACKBONES.get(config.model_type)
    if family is None:
        raise CoCoMixError(
            f"backbone model_type {config.model_type!r} is not supported: {_why_not(config)}; use one of "
            f"{', '.join(SUPPORTED_BACKBONES)}, or add it (docs/models.md)."
        )
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise CoCoMixError(
            "a backbone with scale_attn_by_inverse_layer_idx: true cannot be split: its upper half would count its "
            "blocks from 0 again; set it to false."
        )
    return family


def blocks_of(decoder: PreTrainedModel) -> nn.ModuleList:
    """The blocks of a decoder without a head, or of one half."""
    blocks: nn.ModuleList = getattr(decoder, backbone_of(decoder.config).blocks)
    return blocks


def _why_not(config: PreTrainedConfig) -> str:
    """What stands in the way of a family, as far as its configuration tells."""
    text = config.get_text_config()
    if text is not config:
        return f"it is more than a language model; its own decoder is model_type {text.model_type!r}"
    if config.is_encoder_decoder:
        return "it is an encoder with a decoder, and there is no point at which it could be split"
    if any(getattr(config, name, None) for name in _EXPERT_COUNTS):
        return "it is a mixture of experts, whose balancing loss is computed over all blocks at once"
    if not getattr(config, "is_decoder", True):
        return "it is an encoder, not a decoder"
    return "nobody has tested that its halves equal the whole"


def build_halves(
    config: PreTrainedConfig,
    insert_layer: int,
    positions_per_token: int,
    attn_implementation: str | None,
    *,
    own_positions: bool = True,
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Build the freshly initialised lower and upper halves of a decoder.

    Args:
        insert_layer: number of blocks in the lower half.
        positions_per_token: places in the upper half per token (2 doubles its context and its sliding windows).
        attn_implementation: attention kernel of both halves, as Hugging Face names it.
        own_positions: whether these places have positions of their own, so that the length at which LongRoPE changes
            frequencies is doubled too.

    Returns:
        The lower half, `input_ids` → hidden state entering block `insert_layer`, and the upper half,
        `inputs_embeds` → normed final hidden state.
    """
    backbone = backbone_of(config)
    total = config.num_hidden_layers
    lower = AutoModel.from_config(part_config(config, 0, insert_layer), attn_implementation=attn_implementation)
    upper_config = part_config(config, insert_layer, total)
    upper_config.max_position_embeddings = positions_per_token * config.max_position_embeddings
    if getattr(config, "sliding_window", None) is not None:
        upper_config.sliding_window = positions_per_token * config.sliding_window
    rope = getattr(upper_config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # its other frequencies set in at the same token in both halves
        switch = (positions_per_token if own_positions else 1) * rope["original_max_position_embeddings"]
        upper_config.original_max_position_embeddings = rope["original_max_position_embeddings"] = switch
    upper_config.vocab_size = 1  # no token is embedded here: the module is replaced below
    for name in _TOKEN_IDS:
        setattr(upper_config, name, None)
    upper = AutoModel.from_config(upper_config, attn_implementation=attn_implementation)

    setattr(lower, backbone.final_norm, nn.Identity())
    setattr(upper, backbone.token_embedding, nn.Identity())
    if backbone.input_dropout is not None:  # the embeddings are dropped out once, in the lower half
        setattr(upper, backbone.input_dropout, nn.Identity())
    if backbone.position_embedding is not None:
        setattr(upper, backbone.position_embedding, _NoPositions())
    with torch.no_grad():  # what starts ∝ 1/√(number of blocks): half a model is still part of L blocks
        for part, layers in ((lower, insert_layer), (upper, total - insert_layer)):
            for name, parameter in part.named_parameters():
                if name.endswith(backbone.depth_scaled_init):
                    parameter.mul_(math.sqrt(layers / total))
    return lower, upper


def further_blocks(config: PreTrainedConfig, count: int, attn_implementation: str | None) -> PreTrainedModel:
    """Blocks beside a decoder's own, of the kind of its last one, and their norm: `inputs_embeds` → normed states.

    They see everything before them, since windows are in tokens and what comes in may be longer than one. Learned
    positions are not added.
    """
    last = part_config(config, config.num_hidden_layers - 1, config.num_hidden_layers)
    last.num_hidden_layers, last.vocab_size = count, 1
    for name in _PER_LAYER_FIELDS:
        if (kinds := getattr(last, name, None)) is not None:
            setattr(last, name, ["full_attention"] * count if name == "layer_types" else kinds * count)
    if getattr(last, "sliding_window", None) is not None:
        last.sliding_window = last.max_position_embeddings
    for name in _TOKEN_IDS:
        setattr(last, name, None)
    return build_halves(last, 0, 1, attn_implementation)[1]


def part_config(config: PreTrainedConfig, start: int, stop: int) -> PreTrainedConfig:
    """The configuration of blocks [start, stop) alone, per-layer lists sliced with them."""
    part = copy.deepcopy(config)
    for name in _PER_LAYER_FIELDS:
        values = getattr(part, name, None)
        if values is not None:
            setattr(part, name, list(values[start:stop]))
    part.num_hidden_layers = stop - start
    return part


def split_state_dict(model: PreTrainedModel, insert_layer: int) -> dict[str, Tensor]:
    """Rename a plain causal LM's weights to those of a `CoCoMixForCausalLM` split at `insert_layer`.

    Returns:
        Tensors (shared with `model`, not copied) under `lower.*`, `upper.*` and `lm_head.*`. A tied head is included.
    """
    backbone = backbone_of(model.config)
    prefix = model.base_model_prefix + "."
    block = re.compile(rf"{re.escape(prefix + backbone.blocks)}\.(\d+)\.(.+)")
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    renamed: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if match := block.fullmatch(name):
            index = int(match[1])
            half, local = ("lower", index) if index < insert_layer else ("upper", index - insert_layer)
            renamed[f"{half}.{backbone.blocks}.{local}.{match[2]}"] = tensor
        elif name.startswith(f"{prefix}{backbone.final_norm}."):
            renamed["upper." + name.removeprefix(prefix)] = tensor
        elif name.startswith(prefix):
            renamed["lower." + name.removeprefix(prefix)] = tensor
        else:
            renamed["lm_head." + name.removeprefix(head + ".")] = tensor
    return renamed


def check_loaded_decoder(config: Any, missing: Iterable[str], unexpected: Iterable[str], source: Any) -> None:
    """Refuse saved weights of another decoder, or of one that was split elsewhere, than a `CoCoMixConfig` describes.

    Names that are missing or unexpected in the predictor and the form of mixing are the caller's choice, of which
    transformers warns.
    """
    for names, said in ((missing, "lack"), (unexpected, "also hold")):
        of_decoder = sorted(name for name in names if name.startswith(("lower.", "upper.", "lm_head.")))
        if of_decoder:
            raise CoCoMixError(
                f"the weights in {source} {said} {of_decoder[0]}, so they are not those of the "
                f"{config.num_hidden_layers} {config.backbone.model_type} blocks with insert_layer="
                f"{config.insert_layer} that were asked for; leave insert_layer and backbone as they were saved."
            )


def positions_of(
    query: Tensor | None,  # [batch, seq, …]
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past: int,
    backbone: PreTrainedConfig,
) -> Tensor | None:
    """Position ids of new tokens in the lower half [batch or 1, seq]; `None` where its own default says the same.

    With a padding mask they count real tokens only; after `past` cached tokens they go on from there. A mask of another
    shape, and more tokens than positions the backbone has learned, are refused.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        raise CoCoMixError(
            f"attention_mask has {attention_mask.dim()} dimensions; pass a two-dimensional mask [batch, past + seq]."
        )
    if query is None:
        return position_ids
    seq = query.shape[1]
    if position_ids is None and attention_mask is not None:
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -seq:]
    elif position_ids is None and past > 0:
        position_ids = torch.arange(past, past + seq, device=query.device).unsqueeze(0)
    context = backbone.max_position_embeddings
    learned = past + seq > context and backbone_of(backbone).position_embedding is not None
    # What is padding has no position of its own, so that values are asked.
    if learned and (position_ids is None or int(position_ids.max()) >= context):
        raise CoCoMixError(
            f"the input has {past + seq} tokens, but the model's context is {context}; shorten it (the saved tokenizer "
            "does, with truncation=True)."
        )
    return position_ids
