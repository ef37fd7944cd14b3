"""Parallel multi-token prediction (arXiv 2404.19737): every later token has a block of its own on the trunk's state.

L = (1/N) Σ_{k=2..n} Σ_t CE(U norm_k(block_k(u))_t, x_{t+k}), where u is the residual stream before the model's last
block, which predicts x_{t+1}, block_k one of the backbone's kind with a final norm, and U the model's own head. Weight
1, n = 4. The blocks are left out of the finished model.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedConfig

from cocomix.model.targets import SetCrossEntropy
from cocomix.training.objectives.ahead import head_flops, masks_of, models_head, own_block, states_after, tokens_ahead
from cocomix.training.objectives.objective import ALWAYS, Batch, Schedule, SingleTerm


class ParallelMTP(SingleTerm):
    """Cross-entropies of the tokens two to `ahead` ahead, added up.

    Args:
        ahead: n, how many tokens are predicted, the next one included.
    """

    name = "mtp_parallel"
    reads_states = True
    outside_forward = True

    def __init__(self, weight: Schedule = ALWAYS, ahead: Annotated[int, Field(ge=2)] = 4) -> None:
        super().__init__(weight)
        self.ahead = ahead

    def summed(self, output: Any, batch: Batch, head: Any) -> Tensor:
        """`mtp_parallel_loss`, nats per target token, of all later tokens together."""
        config = self.model.config
        trunk = states_after(output, config, config.num_hidden_layers - 1)
        targets, read = tokens_ahead(batch, self.ahead), models_head(self.model)
        summed = trunk.new_zeros((), dtype=torch.float32)
        for number, states in enumerate(head(trunk, masks_of(batch)), start=1):
            loss = SetCrossEntropy(targets[..., number].reshape(-1, 1))
            summed = summed + read(states.flatten(0, 1), loss, 0).loss_sum
        return summed

    def build_head(self, config: PreTrainedConfig) -> nn.Module:
        """A block for each later token: 12d² parameters of matrices each."""
        return _Blocks(config, self.ahead - 1)

    def extra_flops_per_token(self, config: PreTrainedConfig) -> float:
        """Those of the blocks, and of the model's head for each."""
        return super().extra_flops_per_token(config) + (self.ahead - 1) * head_flops(config)


class _Blocks(nn.Module):
    def __init__(self, config: PreTrainedConfig, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(own_block(config) for _ in range(count))

    def forward(self, trunk: Tensor, masks: dict[str, Tensor]) -> list[Tensor]:
        """What each block predicts from. [batch, seq, d_model] each"""
        return [block(inputs_embeds=trunk, use_cache=False, **masks).last_hidden_state for block in self.blocks]
