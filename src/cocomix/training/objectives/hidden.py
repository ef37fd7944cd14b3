"""Direct prediction of the teacher's hidden states (paper Fig. 6b): L = (1/N) Σ_t distance(u_t, h_t).

u_t is what an MLP of the student predicts at block `insert_layer`, h_t the teacher's layer-normed hidden state, and the
sum runs over the N positions with a target token; `hidden_loss` of the configuration names the distance, no nats.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cocomix.training.objectives.objective import Batch, Schedule, SingleTerm


class HiddenPrediction(SingleTerm):
    """The distance, weighted by `concept_loss_weight`, for `prediction: hidden`.

    Args:
        weight: of the distance.
        states: the teacher's hidden states of a batch, [batch, seq, d_teacher].
        teacher_flops: per token, up to the block that is read.
    """

    name = "hidden"

    def __init__(self, weight: Schedule, states: Callable[[Batch], Tensor], teacher_flops: float = 0.0) -> None:
        super().__init__(weight)
        self.states, self.teacher_flops = states, teacher_flops

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"hidden_targets": self.states(batch)}

    def summed(self, output: Any, batch: Batch, head: Any) -> Tensor:
        loss: Tensor = output.hidden_loss
        return loss
