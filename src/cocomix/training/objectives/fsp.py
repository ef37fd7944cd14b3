"""Future-summary prediction, bag of words (FSP, arXiv 2510.14751): which tokens come soon, in whatever order.

L = (1/N) Σ_t (1/V) [Σ_v softplus(z_{t,v}) − Σ_{v∈bag} z_{t,v}] with the bag {x_{t+2} … x_{t+τ}}; z = U h is a head of
its own on the state that the language-model head reads, left out of the finished model.
"""

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from cocomix.model.targets import BagOfWords
from cocomix.training.objectives.ahead import OwnHead, first_occurrences, last_states, tokens_ahead
from cocomix.training.objectives.objective import ALWAYS, Batch, Schedule


class FutureSummary(OwnHead):
    """Binary cross-entropy of every token of the vocabulary: whether it comes within the window.

    Args:
        weight: of it. The paper does not say how it divides the sum over the vocabulary; by V, so sweep the weight.
        window: τ.
    """

    name = "fsp"

    def __init__(self, weight: Schedule = ALWAYS, window: Annotated[int, Field(ge=2)] = 12) -> None:
        super().__init__(weight)
        self.window = window

    def summed(self, output: Any, batch: Batch, head: Any) -> Tensor:
        """`fsp_loss`, nats per target token and token of the vocabulary."""
        bag = first_occurrences(tokens_ahead(batch, self.window)[..., 1:])
        read = head(last_states(output).flatten(0, 1), BagOfWords(bag.flatten(0, 1)), 0)
        loss: Tensor = read.loss_sum / head.out_features
        return loss
