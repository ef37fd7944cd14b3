"""Attention whose gradient stays at its own position.

`gradient="next"` (method.md §2) asks for ∂ℓ_t/∂h_t, the effect of position t's hidden state on the loss of the token
right after it, for every t. One backward pass per position would give it; one pass in total is enough. In a causal
decoder position t is reached from h_t along its own residual stream only: earlier positions do not see h_t, and a path
through a later position s > t ends in ℓ_s, not in ℓ_t. So if attention lets no gradient pass from a query at t to the
keys and values of other positions, the gradient of Σ_t ℓ_t with respect to h_t is exactly ∂ℓ_t/∂h_t. Forward values are
unchanged. Cost: one backward pass, with the [seq, seq] attention weights of the blocks above the hooked one held in
memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def diagonal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention [batch, heads, seq, head_dim] whose keys and values get gradient from their own query only.

    Same arguments and values as `torch.nn.functional.scaled_dot_product_attention`, for as many queries as keys and no
    dropout (the teacher is in evaluation mode).
    """
    assert dropout_p == 0.0
    assert query.shape[-2] == key.shape[-2]
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, dim=-3), value.repeat_interleave(groups, dim=-3)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    seq = query.shape[-2]
    diagonal = torch.eye(seq, dtype=torch.bool, device=query.device)
    own = (query * key).sum(dim=-1, keepdim=True)  # [batch, heads, seq, 1]
    scores = torch.where(diagonal, own, query @ key.detach().transpose(-2, -1)) * factor  # [batch, heads, seq, seq]
    lowest = torch.finfo(scores.dtype).min  # not −inf: a row of padding may see nothing, and must not become NaN
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(diagonal).triu(1), lowest)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, lowest) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = scores.softmax(dim=-1)
    own_weight = weights.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # [batch, heads, seq, 1]
    return weights @ value.detach() + own_weight * (value - value.detach())


class DiagonalGradient(TorchFunctionMode):
    """While active, PyTorch's attention that takes part in a gradient is `diagonal_attention`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0  # attentions replaced; the caller checks that no block went another way

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and (args[0] if args else kwargs["query"]).requires_grad:
            self.calls += 1
            return diagonal_attention(*args, **kwargs)
        return func(*args, **kwargs)
