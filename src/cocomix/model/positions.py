"""Position ids of the lower half, which a form of mixing expands for the upper one, and what they say of neighbours."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from cocomix.model.backbone import backbone_of
from cocomix.model.cache import CoCoMixCache
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE


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


def preceding(tokens: Tensor, positions: Tensor | None, kept: CacheLayerMixin | None) -> Tensor:
    """The token before each new one, −100 where its document or the text begins. [batch, seq], int64

    One token follows another if its position is one more: so neither padding nor another document, where positions keep
    documents apart, is a token before.

    Args:
        tokens: the new ones. [batch, seq]
        positions: theirs; `None` for 0 … seq − 1. [batch or 1, seq]
        kept: a layer of the cache that holds earlier tokens; these are added to it.
    """
    seq = tokens.shape[1]
    positions = torch.arange(seq, device=tokens.device).unsqueeze(0) if positions is None else positions
    positions = positions.expand_as(tokens)
    if kept is not None:
        whole = kept.update(tokens[:, None, :, None], positions[:, None, :, None])
        tokens, positions = (each[:, 0, :, 0] for each in whole)
    before = nn.functional.pad(tokens[:, :-1], (1, 0), value=IGNORE)
    follows = nn.functional.pad(positions[:, 1:] == positions[:, :-1] + 1, (1, 0), value=False)
    return before.masked_fill(~follows, IGNORE)[:, -seq:]
