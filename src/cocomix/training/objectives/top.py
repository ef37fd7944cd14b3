"""Token-order prediction (TOP, arXiv 2508.19228): which tokens come soon, and in which order.

L = (1/N) Σ_t [logsumexp(z_t) − Σ_v p_v z_{t,v}], p = softmax(y) over the vocabulary, y_v = W − j + 1 for the distance
j = 1 … W to the *first* of the next tokens that is v, −∞ without. z = U h is a head of its own on the state that the
language-model head reads, left out of the finished model. p falls as e^{−j}, so that 16 distances say all of it.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from cocomix.model.targets import SetCrossEntropy
from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives.ahead import OwnHead, first_occurrences, last_states, tokens_ahead
from cocomix.training.objectives.objective import ALWAYS, Batch, Schedule

DISTANCES = 16
_WINDOW = 4096  # of the released code

Scores = Literal["exact", "released"]


class TokenOrder(OwnHead):
    """Cross-entropy between the order of the next tokens and a head's logits.

    Args:
        scores: `exact`, or `released` for those of the authors' code, whose half precision makes neighbours of the
            4,096 scores equal.
    """

    name = "top"

    def __init__(self, weight: Schedule = ALWAYS, scores: Scores = "exact") -> None:
        super().__init__(weight)
        self.scores: Scores = scores

    def summed(self, output: Any, batch: Batch, head: Any) -> Tensor:
        """`top_loss`, nats per target token."""
        labels, shares = order_targets(tokens_ahead(batch, DISTANCES), self.scores)
        loss = SetCrossEntropy(labels.flatten(0, 1), shares.flatten(0, 1))
        summed: Tensor = head(last_states(output).flatten(0, 1), loss, 0).loss_sum
        return summed


def order_targets(ahead: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    """Tokens and their shares p from `tokens_ahead`, [batch, seq, distances] both; `IGNORE` and 0 for no target.

    With `released`, y is rounded to half precision, in which 4,096 and 4,095 are the same number.
    """
    first = first_occurrences(ahead)
    y = _WINDOW - torch.arange(ahead.shape[-1], device=ahead.device, dtype=torch.float32)
    y = y.half().float() if scores == "released" else y
    logits = y.expand(ahead.shape).masked_fill(first == IGNORE, float("-inf"))
    return first, logits.softmax(-1).nan_to_num(0.0)
