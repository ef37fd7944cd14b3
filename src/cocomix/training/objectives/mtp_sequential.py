"""Sequential multi-token prediction (DeepSeek-V3), one token further: a block of its own predicts x_{t+2}.

g_t = block(M [norm(e_{t+1}); norm(h_t)]), where h_t is what the language-model head reads, e_{t+1} the embedded next
token, M a projection 2d → d and the block one of the backbone's kind with a final norm; by the model's own head U,
L = (1/N) Σ_t CE(U g_t, x_{t+2}). Weight 0.3, and 0.1 from 68% of training. Norms, M and block are left out of the
finished model.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from cocomix.model.targets import SetCrossEntropy
from cocomix.training.objectives.ahead import head_flops, last_states, masks_of, models_head, own_block, tokens_ahead
from cocomix.training.objectives.objective import Batch, Schedule, SingleTerm

_WEIGHT = Schedule(shape="stages", stages={0.0: 0.3, 0.68: 0.1})


class SequentialMTP(SingleTerm):
    """Cross-entropy of the token after the next, which is given."""

    name = "mtp_sequential"
    reads_states = True
    outside_forward = True

    def __init__(self, weight: Schedule = _WEIGHT) -> None:
        super().__init__(weight)

    def summed(self, output: Any, batch: Batch, head: Any) -> Tensor:
        """`mtp_sequential_loss`, nats per target token."""
        embedded, states = output.hidden_states[0][:, 1:], last_states(output)[:, :-1]
        masks = {name: mask[:, :-1] for name, mask in masks_of(batch).items()}
        further = tokens_ahead(batch, 2)[:, :-1, 1].reshape(-1, 1)
        loss = SetCrossEntropy(further)
        summed: Tensor = models_head(self.model)(head(embedded, states, masks).flatten(0, 1), loss, 0).loss_sum
        return summed

    def build_head(self, config: PreTrainedConfig) -> nn.Module:
        """Norms, M and a block: 14d² parameters of matrices, where a block has 12d²."""
        return _Module(config)

    def extra_flops_per_token(self, config: PreTrainedConfig) -> float:
        """Those of M, the block and the model's head."""
        return super().extra_flops_per_token(config) + head_flops(config)


class _Module(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.token_norm, self.state_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.project = nn.Linear(2 * width, width, bias=False)
        self.block = own_block(config)

    def forward(self, embedded: Tensor, states: Tensor, masks: dict[str, Tensor]) -> Tensor:
        joined = self.project(torch.cat((self.token_norm(embedded), self.state_norm(states)), -1))
        predicted: Tensor = self.block(inputs_embeds=joined, use_cache=False, **masks).last_hidden_state
        return predicted
