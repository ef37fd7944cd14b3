"""NITP (arXiv 2605.24956): the last state also predicts an early state of the next token.

L = (1/N) Σ_t [1 − cos(P(h_t), sg(r_{t+1}))], where h_t is what the language-model head reads, r_{t+1} the residual
stream of x_{t+1} after `block` blocks (the paper: about a fifth of them) and P a SwiGLU d → 4d → d that is left out of
the finished model. The stop-gradient sg carries the paper's gain. Weight 1 from the first step to the last.
"""

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from cocomix.runtime.errors import CoCoMixError
from cocomix.training.objectives.ahead import last_states, states_after
from cocomix.training.objectives.objective import ALWAYS, Batch, Schedule, SingleTerm


class NextImplicitState(SingleTerm):
    """One minus the cosine between the projected state and the next token's early one.

    Args:
        block: after how many blocks the target is taken; by default a fifth of them, at least one.
    """

    name = "nitp"
    reads_states = True

    def __init__(self, weight: Schedule = ALWAYS, block: Annotated[int, Field(ge=0)] | None = None) -> None:
        super().__init__(weight)
        self.block = block

    def summed(self, output: Any, batch: Batch, head: Any) -> Tensor:
        """`nitp_loss`, between 0 and 2."""
        config = self.model.config
        early = states_after(output, config, self._block(config)).detach()
        predicted = head(last_states(output)[:, :-1])
        far = 1.0 - F.cosine_similarity(predicted.float(), early[:, 1:].float(), dim=-1)  # [batch, seq − 1]
        return (far * self.counted(batch)[:, :-1]).sum()

    def build_head(self, config: PreTrainedConfig) -> nn.Module:
        """The projection P, 12d² parameters.

        Raises:
            CoCoMixError: the model has fewer blocks than `block`.
        """
        if self._block(config) > config.num_hidden_layers:
            raise CoCoMixError(
                f"auxiliary.nitp.block is {self.block}, but the model has {config.num_hidden_layers} blocks; choose "
                "one of 0 to that."
            )
        return _SwiGLU(config.hidden_size)

    def _block(self, config: PreTrainedConfig) -> int:
        return max(1, round(0.2 * config.num_hidden_layers)) if self.block is None else self.block


class _SwiGLU(nn.Module):
    """down(silu(gate h) · up h), 4d wide, without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, 4 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        projected: Tensor = self.down(F.silu(self.gate(states)) * self.up(states))
        return projected
