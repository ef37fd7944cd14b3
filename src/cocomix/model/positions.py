"""Position ids of the lower half; a form of mixing expands them for the upper one."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from cocomix.model.backbone import backbone_of
from cocomix.model.cache import CoCoMixCache
from cocomix.runtime.errors import CoCoMixError

__all__ = ["positions_of"]


def _check_length(tokens: int, backbone: PreTrainedConfig) -> None:
    """Refuse more tokens than a backbone with learned positions has learned; rotary ones have no end.

    Raises:
        CoCoMixError: both numbers are given.
    """
    if tokens > backbone.max_position_embeddings and backbone_of(backbone).position_embedding is not None:
        raise CoCoMixError(
            f"the input has {tokens} tokens, but the model's context is {backbone.max_position_embeddings}; shorten it "
            "(the saved tokenizer does, with truncation=True)."
        )


def positions_of(
    query: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: CoCoMixCache | None,
    backbone: PreTrainedConfig,
) -> Tensor | None:
    """Positions of the new tokens [batch or 1, seq]; `None` where the halves' own default says the same.

    With a padding mask they count real tokens only; after cached tokens they go on from there.

    Raises:
        CoCoMixError: the mask has another shape, or there are more tokens than learned positions.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        raise CoCoMixError(
            f"attention_mask has {attention_mask.dim()} dimensions; pass a two-dimensional mask [batch, past + seq]."
        )
    if position_ids is not None or query is None:
        return position_ids
    seq = query.shape[1]
    if attention_mask is not None:
        positions = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -seq:]
        if attention_mask.shape[1] > backbone.max_position_embeddings:  # it may be padding, so that values are asked
            _check_length(int(positions.max()) + 1, backbone)
        return positions
    past = 0 if cache is None else cache.get_seq_length()
    _check_length(past + seq, backbone)
    return None if past == 0 else torch.arange(past, past + seq, device=query.device).unsqueeze(0)
