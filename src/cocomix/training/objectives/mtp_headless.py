"""Headless multi-token prediction, annealed (modded-nanogpt): the same logits should also give later tokens.

L = (1/N) Σ_t Σ_{k=2,3} w_k [logsumexp(z_t) − z_{t,x_{t+k}}], where w_3 falls from ¼ to 0 within the first third of
training, and w_2 is ½ so long and 0 after the second: furthest first. With next-token prediction the weights are
[1, ½, ¼ → 0], [1, ½ → 0], [1]. No parameters, and no FLOPs: the logits serve all losses.
"""

import torch

from cocomix.model.targets import HeadLoss, SetCrossEntropy
from cocomix.training.objectives.ahead import tokens_ahead
from cocomix.training.objectives.objective import Batch, Schedule, SingleTerm

_SECOND = Schedule(shape="linear", value=0.5, since=1 / 3, until=2 / 3)
_THIRD = Schedule(shape="linear", value=0.5, until=1 / 3)


class HeadlessMTP(SingleTerm):
    """Cross-entropies of the tokens two and three ahead, nats per target token.

    Args:
        weight: w_2.
        third: w_3 as a share of w_2.
    """

    name = "mtp_headless"

    def __init__(self, weight: Schedule = _SECOND, third: Schedule = _THIRD) -> None:
        super().__init__(weight)
        self.third = third

    def head_losses(self, batch: Batch) -> dict[str, HeadLoss]:
        further = tokens_ahead(batch, 3)[..., 1:].flatten(0, 1)  # [N, 2]
        shares = torch.tensor([1.0, self.third.weight(*batch["progress"])], device=further.device)
        return {"mtp_headless_loss": SetCrossEntropy(further, shares.expand(further.shape))}
