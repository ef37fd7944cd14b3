"""The next-token loss, from logits or without ever holding them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.model.concept_head import IGNORE, concept_head

__all__ = ["loss_of_hidden", "loss_of_logits", "next_tokens"]


def loss_of_logits(
    logits: Tensor,  # [batch, seq, vocab]
    labels: Tensor,  # [batch, seq] int64
    attention_mask: Tensor | None = None,  # [batch, past + seq]
    num_items: Tensor | int | None = None,
) -> Tensor:  # []
    """Cross-entropy in nats of predicting labels[t + 1] at position t, in float32; padding predicts nothing.

    Args:
        logits: of all positions.
        labels: −100 where a token is no target.
        attention_mask: 1 for tokens, 0 for padding.
        num_items: divisor of the summed loss; by default the number of targets.
    """
    targets = next_tokens(labels, attention_mask).to(logits.device)
    flat = logits.float().flatten(0, 1)
    if num_items is None:
        return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE)
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE, reduction="sum") / num_items


def loss_of_hidden(
    hidden: Tensor,  # [batch, seq, d_model]
    head: nn.Linear,
    labels: Tensor,  # [batch, seq] int64
    attention_mask: Tensor | None = None,  # [batch, past + seq]
    num_items: Tensor | int | None = None,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> Tensor:  # []
    """`loss_of_logits(head(hidden), …)` in chunks of positions: [batch·seq, vocab] is never held.

    A target token is a concept label that is alone at its position, so the concept head's loss does the work: the same
    three matrix products as plain autograd, gradients finished in the forward pass, sums in float32. Our choice:
    on CPU it is as fast as with all logits and five times as fast as PyTorch's chunked linear cross-entropy with its
    own chunks (results/benchmarks), and it works under `torch.compile`.

    Args:
        hidden: what the language-model head reads.
        head: the language-model head, without a bias.
        labels: −100 where a token is no target.
        attention_mask: 1 for tokens, 0 for padding.
        num_items: divisor of the summed loss; by default the number of targets (without any the loss is 0).
        chunk_size: positions per chunk, see `concept_head`.
        softcap: of the logits, likewise.
    """
    targets = next_tokens(labels, attention_mask).to(hidden.device)
    weight: Tensor = head.weight
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    summed = concept_head(hidden.flatten(0, 1), weight, None, targets.reshape(-1, 1), 0, chunk_size, softcap).loss_sum
    return summed / (targets.ne(IGNORE).sum().clamp_min(1) if num_items is None else num_items)


def next_tokens(labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The token to predict at each position [batch, seq], `IGNORE` where there is none."""
    targets = F.pad(labels, (0, 1), value=IGNORE)[:, 1:]
    if attention_mask is not None:
        targets = targets.masked_fill(attention_mask[:, -labels.shape[1] :] == 0, IGNORE)
    return targets
