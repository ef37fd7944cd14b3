"""`mixing: pause`, pause tokens in the place of concepts (paper Fig. 6f)."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from cocomix.model.mixing.form import Concepts, Layout, Mixing, interleaved


class Pause(Mixing):
    """One learned vector after every hidden state: the extra positions of Eq. 3, without concepts."""

    name = "pause"
    described = "after each hidden state stands one learned vector, without concepts (paper Fig. 6f)"
    arm = "pause"
    positions_per_token = 2
    predicts = mixes_in = False

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.pause = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden: Tensor, concepts: Concepts | None, layout: Layout | None = None) -> Tensor:
        """Interleave [batch, seq, d_model] with the vector."""
        return interleaved(hidden, self.pause.to(hidden.dtype).expand_as(hidden))
