"""What forms have in common that add something inside the blocks of the upper half."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from cocomix.model.mixing.form import Mixing


class Adding(Mixing):
    """Base: h_t enters the upper half, and hooks on its blocks add what `forward` noted in `self._added`.

    [batch, seq, …] for each of the blocks to which something is added.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self._added: tuple[Tensor, ...] = ()  # of the forward pass that runs; checkpointed blocks read it once more

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a forward pass, for copies."""
        return {**self.__dict__, "_added": ()}

    def readout(self, hidden: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            self._added = ()
        return hidden
