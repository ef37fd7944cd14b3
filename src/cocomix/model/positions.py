"""Position ids of the lower half, which a form of mixing expands for the upper one."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from cocomix.model.backbone import backbone_of
from cocomix.model.cache import CoCoMixCache
from cocomix.runtime.errors import CoCoMixError


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
        CoCoMixError: the mask has another shape, or there are more tokens than positions the backbone has learned.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        raise CoCoMixError(
            f"attention_mask has {attention_mask.dim()} dimensions; pass a two-dimensional mask [batch, past + seq]."
        )
    if query is None:
        return position_ids
    seq, past = query.shape[1], 0 if cache is None else cache.get_seq_length()
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
