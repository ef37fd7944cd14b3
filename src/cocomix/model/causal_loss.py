"""The next-token loss of a plain decoder without float32 logits of all positions."""

from typing import Any

from torch import Tensor

from cocomix.model.fused_head import SetCrossEntropy, fused_head
from cocomix.model.targets import divisor, next_tokens
from cocomix.runtime.ignore import IGNORE


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
        logits: of a decoder.
        labels: token ids, not shifted; −100 where there is no target.
        vocab_size: of the logits; models give it, and it is not needed.
        num_items_in_batch: divisor of the loss; by default the number of targets here.
    """
    targets = next_tokens(labels, None).to(logits.device)
    summed = fused_head(logits.flatten(0, 1), None, None, SetCrossEntropy(targets.reshape(-1, 1))).loss_sum
    return summed / divisor(targets != IGNORE, num_items_in_batch)
