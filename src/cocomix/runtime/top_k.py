"""The k largest of many numbers, exactly, in two stages where that is faster."""

import torch
from torch import Tensor

_GROUP = 128
_WIDTHS_PER_K = 1024  # below, the second stage reads too many of the numbers again; measured at k = 4 and 32


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `torch.topk` of the last dimension: the k largest, descending, and their indices, [rows, k] of [rows, width].

    On CPUs and in wide rows it looks for the largest of every 128 numbers first: the k largest lie in the k groups with
    the largest maxima. That is as exact, and 1.4 times as fast at k = 32 of 32,768 and 2 times at 65,536 (one core;
    bfloat16 1.2 and 1.9 times). Of equal numbers either may choose others, as `torch.topk` does not say which it takes.
    """
    rows, width = values.shape
    if k == 0 or values.device.type != "cpu" or width < _WIDTHS_PER_K * k:
        found = values.topk(k, dim=-1)
        return found.values, found.indices
    groups, rest = divmod(width, _GROUP)
    whole = values[:, : groups * _GROUP].unflatten(1, (groups, _GROUP))  # type: ignore[no-untyped-call]
    chosen = whole.amax(-1).topk(k, dim=-1, sorted=False).indices  # [rows, k]
    candidates = whole.gather(1, chosen.unsqueeze(-1).expand(rows, k, _GROUP)).flatten(1)
    best, places = torch.cat((candidates, values[:, width - rest :]), -1).topk(k, dim=-1)
    in_group = chosen.gather(1, (places // _GROUP).clamp_max(k - 1)) * _GROUP + places % _GROUP
    return best, torch.where(places < k * _GROUP, in_group, places + (width - rest) - k * _GROUP)
