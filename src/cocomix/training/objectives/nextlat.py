"""NextLat (arXiv 2511.05963): the next last state is predicted from this one and the next token.

ĥ_{t+1} = h_t + MLP(LN[h_t; e_{t+1}]), rolled on over `steps` true tokens; the loss is the mean over t, i, dimensions of
SmoothL1(ĥ_{t+i}, sg h_{t+i}). The MLP has three linear layers, GELU between, the last one zero at the start: a state is
first predicted to stay. The gradient reaches the model only through the h_t that predicts; targets and embeddings e are
cut off. With `kl`, + mean KL(p(· | sg h_{t+i}) ‖ p(· | ĥ_{t+i})) by the language-model head, which gets none of it.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from cocomix.model.targets import Divergence, FullTargets
from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives.ahead import head_flops, last_states, models_head, tokens_ahead
from cocomix.training.objectives.objective import ALWAYS, Batch, Schedule, SingleTerm


class NextLatent(SingleTerm):
    """Distance of the predicted states from those that come.

    Args:
        steps: how many states are predicted from each.
        kl: whether their next-token distributions are compared, too.
    """

    name = "nextlat"
    reads_states = True

    def __init__(self, weight: Schedule = ALWAYS, steps: Annotated[int, Field(ge=1)] = 1, kl: bool = False) -> None:
        super().__init__(weight)
        self.steps, self.kl = steps, kl
        self.outside_forward = kl

    def summed(self, output: Any, batch: Batch, head: Any) -> Tensor:
        """`nextlat_loss`; nats per target token with `kl`, but for the distance in it."""
        embedded, states = output.hidden_states[0].detach(), last_states(output)
        targets, counted = states.detach(), tokens_ahead(batch, self.steps) != IGNORE
        total, predicted = states.new_zeros((), dtype=torch.float32), states
        for step in range(1, self.steps + 1):
            predicted = predicted[:, :-1]
            predicted = predicted + head(torch.cat((predicted, embedded[:, step:]), -1))  # ĥ_{t+step}
            come, used = targets[:, step:], counted[:, :-step, step - 1]
            far = F.smooth_l1_loss(predicted.float(), come.float(), reduction="none").mean(-1)
            total = total + (far * used).sum()
            if self.kl:
                read = models_head(self.model, frozen=True)
                divergence = Divergence.of_batch(FullTargets(come, read.weight, softcap=read.softcap), used)
                total = total + read(predicted.flatten(0, 1), divergence, 0).loss_sum
        return total / self.steps

    def build_head(self, config: PreTrainedConfig) -> nn.Module:
        """The MLP, 4d² + 4d parameters."""
        width = config.hidden_size
        layers = [nn.Linear(wide, width, bias=False) for wide in (2 * width, width, width)]
        nn.init.zeros_(layers[-1].weight)
        return nn.Sequential(nn.LayerNorm(2 * width), layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])

    def extra_flops_per_token(self, config: PreTrainedConfig) -> float:
        """Those of the MLP and, with `kl`, of logits on both sides and back to the predicted state."""
        return self.steps * (super().extra_flops_per_token(config) + (head_flops(config) if self.kl else 0.0))
