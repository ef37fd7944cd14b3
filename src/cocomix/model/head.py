"""`Head`: a linear layer that computes its loss and top-k itself, and what stands in for it where it is wrapped.

Nothing else reads the layer's weight, so that whatever gathers, moves, quantises or adapts a module around its
`forward` (FSDP, offloading, torchao, PEFT) does so here, too.
"""

from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cocomix.model.fused_head import HeadOutput, fused_head
from cocomix.model.head_losses import HeadLoss, accumulation_dtype
from cocomix.runtime.device import chunk_bytes
from cocomix.runtime.errors import CoCoMixError


class Head(nn.Linear):
    """Logits of vocabulary or concepts; see `fused_head` for what it does with a loss.

    Args:
        chunk_size: positions whose logits are held at once; by default as many as the device's memory suggests.
        softcap: of the logits in a loss; `forward` without one leaves capping to the caller.
    """

    def __init__(
        self, d_model: int, width: int, *, bias: bool, chunk_size: int | None = None, softcap: float | None = None
    ) -> None:
        super().__init__(d_model, width, bias=bias)
        self.chunk_size, self.softcap = chunk_size, softcap

    @overload
    def forward(self, hidden: Tensor) -> Tensor: ...
    @overload
    def forward(self, hidden: Tensor, loss: HeadLoss | None, k: int) -> HeadOutput: ...

    def forward(self, hidden: Tensor, loss: HeadLoss | None = None, k: int | None = None) -> Tensor | HeadOutput:
        """Uncapped logits [..., width] of [..., d_model]; with `k`, the top k and the loss of [N, d_model]."""
        if k is None:
            return super().forward(hidden)
        if type(self.weight) not in (nn.Parameter, Tensor):  # quantised: only its product with a state is defined
            return _in_chunks(super().forward, self, hidden, loss, k)
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return fused_head(hidden, weight, bias, loss, k, self.chunk_size, self.softcap)


def head_output(head: nn.Module, hidden: Tensor, loss: HeadLoss | None, k: int) -> HeadOutput:
    """Top k and loss of hidden states [N, d_model], whatever stands in the place of a `Head`.

    A `Head` knows how. Of a module that wraps one, such as PEFT's LoRA layer, only logits can be asked for.

    Raises:
        CoCoMixError: it is neither.
    """
    if isinstance(head, Head):
        output: HeadOutput = head(hidden, loss, k)
        return output
    inner = next((module for module in head.modules() if isinstance(module, Head)), None)
    if inner is None:  # it would not know the cap of the logits
        raise CoCoMixError(
            f"a {type(head).__name__} stands where a Head is needed; give the layer to model.set_output_embeddings."
        )
    return _in_chunks(head, inner, hidden, loss, k)


def _in_chunks(
    logits_of: Callable[[Tensor], Tensor], head: Head, hidden: Tensor, loss: HeadLoss | None, k: int
) -> HeadOutput:
    """Top k and loss by plain autograd, chunk by chunk, logits made once more in the backward pass."""
    chunk_size = head.chunk_size or max(1, chunk_bytes(hidden.device) // (8 * head.out_features))
    recomputed = torch.is_grad_enabled()
    parts = []
    for start in range(0, max(1, len(hidden)), chunk_size):
        rows = slice(start, start + chunk_size)
        arguments = (logits_of, hidden[rows], None if loss is None else loss.part(rows), k, head.softcap)
        parts.append(checkpoint(_of_chunk, *arguments, use_reentrant=False) if recomputed else _of_chunk(*arguments))
    values, ids, sums = zip(*parts, strict=True)
    return HeadOutput(torch.cat(values), torch.cat(ids), torch.stack(sums).sum())


def _of_chunk(
    logits_of: Callable[[Tensor], Tensor], hidden: Tensor, loss: HeadLoss | None, k: int, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, ids and summed loss of one chunk, by plain autograd."""
    logits = logits_of(hidden)
    values, ids = logits.topk(k, dim=-1)
    scores = logits.to(accumulation_dtype(logits))
    if loss is None:
        return values, ids, scores.new_zeros(())
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    return values, ids, fused_head(scores, None, None, loss).loss_sum
