"""A linear head and its loss, which never holds the logits of all positions: `Head`, and the function it calls.

That works in chunks of positions: logits, their top-k, loss, and the loss's gradient, finished while the logits are at
hand. `fused_head` has the mathematics. Nothing else than `Head` reads the layer's weight, so that whatever gathers,
moves, quantises or adapts a module around its `forward` (FSDP, offloading, torchao, PEFT) does so here, too.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cocomix.model.targets import (
    Divergence,
    HeadLoss,
    SetCrossEntropy,
    Weighted,
    accumulation_dtype,
    divisor,
    next_tokens,
)
from cocomix.runtime.device import chunk_bytes
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.runtime.top_k import top_k


class HeadOutput(NamedTuple):
    """What a head yields for N positions.

    `loss_sum` [] is in nats, over the positions that count, zero without a loss; float32, or float64 as the logits. Of
    `Weighted` losses it has each, [n].
    """

    values: Tensor  # the k largest logits, descending. [N, k], dtype of the logits
    ids: Tensor  # their columns. [N, k], int64
    loss_sum: Tensor


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
    def forward(self, hidden: Tensor, loss: HeadLoss | Weighted | None, k: int) -> HeadOutput: ...

    def forward(
        self, hidden: Tensor, loss: HeadLoss | Weighted | None = None, k: int | None = None
    ) -> Tensor | HeadOutput:
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


def head_output(head: nn.Module, hidden: Tensor, loss: HeadLoss | Weighted | None, k: int) -> HeadOutput:
    """Top k and loss of hidden states [N, d_model], by a `Head` or what stands in its place.

    Of a module that wraps one, such as PEFT's LoRA layer, only logits can be asked for; anything else is refused.
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


def loss_sums(
    head: nn.Module,
    hidden: Tensor,  # [batch, seq, d_model]
    logits: Tensor | None,  # [batch, seq, width]
    losses: Mapping[str, HeadLoss],
    weights: Mapping[str, Tensor] | None,  # [] each
) -> dict[str, Tensor]:
    """Losses summed over positions: from all logits if these are there, else chunk by chunk.

    Those that will be differentiated as Σ weights · losses alone take one pass.
    """
    if logits is not None:
        return {name: _of_logits(logits.flatten(0, 1), loss) for name, loss in losses.items()}
    hidden = hidden.flatten(0, 1)
    if weights is None or len(losses) < 2:
        return {name: head_output(head, hidden, loss, 0).loss_sum for name, loss in losses.items()}
    together = Weighted(tuple(losses.values()), torch.stack([weights[name] for name in losses]))
    return dict(zip(losses, head_output(head, hidden, together, 0).loss_sum.unbind(), strict=True))


def _of_logits(logits: Tensor, loss: HeadLoss) -> Tensor:
    if isinstance(loss, SetCrossEntropy) and loss.labels.shape[1] == 1 and loss.weights is None:
        targets = loss.labels.flatten().to(logits.device)
        return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum")
    return fused_head(logits, None, None, loss).loss_sum


def _in_chunks(
    logits_of: Callable[[Tensor], Tensor], head: Head, hidden: Tensor, loss: HeadLoss | Weighted | None, k: int
) -> HeadOutput:
    """Top k and loss by plain autograd, chunk by chunk, logits made once more in the backward pass."""

    def of_chunk(hidden: Tensor, loss: HeadLoss | Weighted | None) -> tuple[Tensor, Tensor, Tensor]:
        logits = logits_of(hidden)
        values, ids = logits.topk(k, dim=-1)
        scores = logits.to(accumulation_dtype(logits))
        if loss is None:
            return values, ids, scores.new_zeros(())
        scores = scores if head.softcap is None else torch.tanh(scores / head.softcap) * head.softcap
        return values, ids, fused_head(scores, None, None, loss).loss_sum

    chunk_size = head.chunk_size or max(1, chunk_bytes(hidden.device) // (8 * head.out_features))
    recomputed = torch.is_grad_enabled()
    parts = []
    for start in range(0, max(1, len(hidden)), chunk_size):
        rows = slice(start, start + chunk_size)
        arguments = (hidden[rows], None if loss is None else loss.part(rows))
        parts.append(checkpoint(of_chunk, *arguments, use_reentrant=False) if recomputed else of_chunk(*arguments))
    values, ids, sums = zip(*parts, strict=True)
    return HeadOutput(torch.cat(values), torch.cat(ids), torch.stack(sums).sum(0))


def fused_head(
    hidden: Tensor,  # [N, d_model]
    weight: Tensor | None,  # [width, d_model]
    bias: Tensor | None,  # [width]
    loss: HeadLoss | Weighted | None,
    k: int = 0,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> HeadOutput:
    """Logits z = hidden·weightᵀ + bias, their top-k, and a loss summed over positions.

    Memory is O(chunk_size · width) beyond inputs and outputs; with a loss, one float32 matrix of the weight's shape is
    held until the backward pass. The loss is a sum of per-position terms, so its gradient with respect to `hidden`,
    `weight` and `bias` is finished during the forward pass and only scaled in the backward pass; the top-k values'
    gradient touches k rows per position. Our choice: three matrix products a step and no recomputation of logits. On
    CPU it is as fast as with all logits and five times as fast as PyTorch's chunked linear cross-entropy with its own
    chunks (results/benchmarks), and it works under `torch.compile`.

    Args:
        hidden: in the dtype that the matrix products shall use; the logits themselves where `weight` is `None`.
        weight: of the head, in `hidden`'s dtype.
        loss: several make one pass as `Weighted`: the same three products, whatever their number.
        k: how many logits to keep.
        chunk_size: positions per chunk; by default as many as keep a chunk's float32 logits, of a divergence both
            sides', within `chunk_bytes`.
        softcap: the loss is that of softcap·tanh(z/softcap), as a language-model head of Gemma 2's kind has it; the
            top-k values stay uncapped.
    """
    width = hidden.shape[-1] if weight is None else weight.shape[0]
    if chunk_size is None:
        held = loss.losses if isinstance(loss, Weighted) else (loss,)
        bytes_per_position = sum(8 if isinstance(each, Divergence) else 4 for each in held) * width
        chunk_size = max(1, chunk_bytes(hidden.device) // bytes_per_position)
    with_gradient = loss is not None and torch.is_grad_enabled()
    with_gradient = with_gradient and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    learns = with_gradient and weight is not None and weight.requires_grad
    cap = None if weight is None else softcap
    values, ids, loss_sum, *_ = _FusedHead.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, k, chunk_size, cap, with_gradient, learns, loss
    )
    return HeadOutput(values, ids, loss_sum)


def causal_loss(
    logits: Tensor,  # [batch, seq, vocab]
    labels: Tensor,  # [batch, seq]
    vocab_size: int | None = None,
    *,
    num_items_in_batch: Tensor | int | None = None,
    **_: Any,
) -> Tensor:
    """What transformers' `ForCausalLMLoss` computes, for a model's `loss_function`.

    That one casts all logits to float32 and keeps their log-softmax and its gradient, three times [batch·seq, vocab].
    Here the logits and their gradient have the model's dtype, and a chunk of positions at a time is in float32.

    Args:
        labels: token ids, not shifted; −100 where there is no target.
        vocab_size: of the logits; models give it, and it is not needed.
        num_items_in_batch: divisor of the loss; by default the number of targets here.
    """
    targets = next_tokens(labels, None).to(logits.device)
    summed = fused_head(logits.flatten(0, 1), None, None, SetCrossEntropy(targets.reshape(-1, 1))).loss_sum
    return summed / divisor(targets != IGNORE, num_items_in_batch)


class _FusedHead(torch.autograd.Function):
    """Chunked forward with the loss's gradients computed on the way; see `fused_head`.

    The gradients are outputs (not differentiable, dropped by the caller) because what `setup_context` saves must be an
    input or an output; that is what `torch.func` asks for.
    """

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        k: int,
        chunk_size: int,
        softcap: float | None,
        with_gradient: bool,
        weight_learns: bool,
        loss: HeadLoss | Weighted | None,
    ) -> tuple[Tensor | None, ...]:
        positions = hidden.shape[0]
        accumulation = accumulation_dtype(hidden)
        values = hidden.new_empty(positions, k)
        ids = torch.empty(positions, k, dtype=torch.int64, device=hidden.device)
        shape = loss.weights.shape if isinstance(loss, Weighted) else ()
        loss_sum = torch.zeros(shape, dtype=accumulation, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_gradient else None
        grad_weight = torch.zeros_like(weight, dtype=accumulation) if weight_learns and weight is not None else None
        grad_bias = torch.zeros_like(bias, dtype=accumulation) if with_gradient and bias is not None else None
        room = None if weight is None else _room(min(chunk_size, positions), weight)
        for start in range(0, positions, chunk_size):
            rows = slice(start, min(start + chunk_size, positions))
            padded = hidden[rows] if room is None else room[: rows.stop - start]  # [chunk, at least width]
            logits = padded if weight is None else _product(hidden[rows], weight, bias, padded)
            if k > 0:
                values[rows], ids[rows] = top_k(logits, k)
            if loss is None:
                continue
            used_up = padded.to(accumulation, copy=True) if weight is None else padded
            chunk_loss, gradient = loss.part(rows).of_chunk(used_up, logits.shape[1], softcap, with_gradient)
            loss_sum += chunk_loss
            if grad_hidden is None or gradient is None:
                continue
            if weight is None:
                grad_hidden[rows] = gradient
                continue
            # In a narrow format it takes the logits' place, whose rows are padded: so products read aligned rows.
            grad_logits = gradient if gradient.dtype == hidden.dtype else logits.copy_(gradient)
            torch.mm(grad_logits, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                if hidden.dtype == accumulation:
                    grad_weight.addmm_(grad_logits.T, hidden[rows])
                else:
                    grad_weight += grad_logits.T @ hidden[rows]
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
        return values, ids, loss_sum, grad_hidden, grad_weight, grad_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        hidden, weight, bias = inputs[:3]
        _, ids, _, *loss_gradients = output
        ctx.inputs, ctx.loss = len(inputs), inputs[-1] if isinstance(inputs[-1], Weighted) else None
        ctx.set_materialize_grads(False)  # what nobody asks for stays None, and costs nothing
        ctx.mark_non_differentiable(*(tensor for tensor in (ids, *loss_gradients) if tensor is not None))
        ctx.save_for_backward(hidden, weight, bias, ids, *loss_gradients)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_values: Tensor | None, _grad_ids: None, grad_loss: Tensor | None, *_unused: None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, *loss_gradients = ctx.saved_tensors
        accumulation = accumulation_dtype(hidden)
        gradients: list[Tensor | None] = [None, None, None]
        if grad_values is not None and ids.shape[1] > 0:
            # Top-k values: z_{t,i} for k columns per position, so k rows of the weight take part.
            grad_values = grad_values.to(hidden.dtype)
            gradients[0] = F.embedding_bag(ids, weight, per_sample_weights=grad_values, mode="sum")
            gradients[1] = _scatter_outer(ids, grad_values, hidden, weight.shape[0])
            if bias is not None:
                zeros = torch.zeros_like(bias, dtype=accumulation)
                gradients[2] = zeros.index_add_(0, ids.flatten(), grad_values.flatten().to(accumulation))
        if grad_loss is not None:
            grad_loss = grad_loss if ctx.loss is None else ctx.loss.scale(grad_loss)
            for index, of_loss in enumerate(loss_gradients):
                if of_loss is None:
                    continue
                scale, total = grad_loss.to(of_loss.dtype), gradients[index]
                gradients[index] = scale * of_loss if total is None else total.addcmul_(of_loss, scale)
        typed = (
            None if gradient is None or like is None else gradient.to(like.dtype)
            for gradient, like in zip(gradients, (hidden, weight, bias), strict=True)
        )
        return *typed, *(None for _ in range(ctx.inputs - 3))


def _room(rows: int, weight: Tensor) -> Tensor:
    """Room for the logits of a chunk, [rows, padded] with padded > width, uninitialised but for the padding.

    Its rows are a little longer than they need be, and no power of two: on CPUs matrix products with such results and
    operands take 6% less time than with rows of 32,768 or 50,257 (our measurement), whose lines share cache sets.
    """
    width = weight.shape[0]
    room = weight.new_empty(rows, -(-width // 16) * 16 + 16)
    room[:, width:] = 0  # bfloat16 products on CPUs with AMX read it with the last columns: NaN there came out (seen)
    return room


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None, padded: Tensor) -> Tensor:
    """hidden·weightᵀ + bias in the first columns of `padded`."""
    logits = padded[:, : weight.shape[0]]
    if bias is None:
        return logits.addmm_(hidden, weight.T, beta=0)  # 0: what lies there is ignored, be it NaN
    return logits.copy_(bias).addmm_(hidden, weight.T)


def _scatter_outer(ids: Tensor, coefficients: Tensor, hidden: Tensor, width: int) -> Tensor:
    """Σ_t Σ_j coefficients[t, j] · onehot(ids[t, j]) ⊗ hidden[t], [width, d_model], float32 or wider.

    The embedding bag of `hidden`'s gradient transposed: a bag per column, filled with the positions that chose it.
    """
    accumulation = accumulation_dtype(hidden)
    chosen, order = ids.flatten().sort()
    starts = torch.searchsorted(chosen, torch.arange(width, device=ids.device))
    weights = coefficients.flatten()[order].to(accumulation)
    return F.embedding_bag(
        order // ids.shape[1], hidden.to(accumulation), starts, per_sample_weights=weights, mode="sum"
    )
