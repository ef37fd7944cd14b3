"""Position ids of the lower half; a form of mixing expands them for the upper one."""

import torch
from torch import Tensor

from cocomix.model.cache import CoCoMixCache
from cocomix.runtime.errors import CoCoMixError

__all__ = ["positions_of"]


def positions_of(
    query: Tensor | None, attention_mask: Tensor | None, position_ids: Tensor | None, cache: CoCoMixCache | None
) -> Tensor | None:
    """Positions of the new tokens [batch or 1, seq]; `None` where the halves' own default says the same.

    With a padding mask they count real tokens only; after cached tokens they go on from there.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        raise CoCoMixError(
            f"attention_mask has {attention_mask.dim()} dimensions; pass a two-dimensional mask [batch, past + seq]."
        )
    if position_ids is not None or query is None:
        return position_ids
    seq = query.shape[1]
    if attention_mask is not None:
        return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -seq:]
    past = 0 if cache is None else cache.get_seq_length()
    return None if past == 0 else torch.arange(past, past + seq, device=query.device).unsqueeze(0)
