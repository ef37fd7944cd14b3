"""`mixing: loop`, the upper half run again on its own output: the looped baseline of PonderLM-2 (arXiv 2509.23184).

h⁰ = h and hⁱ⁺¹ = upper(hⁱ), `repeats` + 1 times with the same weights; the final norm is applied once, at the end. With
`insert_layer: 0` the whole decoder is looped, as in the paper. Each pass has keys and values of its own, so that a
cache holds `repeats` + 1 of them a block.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.model.backbone import backbone_of
from cocomix.model.mixing.form import Concepts, Layout, Mixing, Pass


class Loop(Mixing):
    """The upper half `repeats` + 1 times, without concepts."""

    name = "loop"
    described = "the upper half runs again on its own output, without concepts (the looped baseline of PonderLM-2)"
    arm = "loop"
    predicts = mixes_in = False

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.repeats = config.repeats
        self._normed = True  # whether the pass that runs is the last one

    def attach(self, lower: PreTrainedModel, upper: PreTrainedModel) -> None:
        """See `Mixing.attach`."""
        norm: nn.Module = getattr(upper, backbone_of(upper.config).final_norm)
        norm.register_forward_hook(self._leave_out)

    def _leave_out(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output if self._normed else inputs[0]

    def forward(self, hidden: Tensor, concepts: Concepts | None, layout: Layout | None = None) -> Tensor:
        """The hidden states."""
        return hidden

    def through(self, mixed: Tensor, upper: Pass) -> Any:
        """Every pass but the last without the final norm."""
        self._normed = False
        try:
            for number in range(self.repeats):
                mixed = upper(mixed, number).last_hidden_state
        finally:
            self._normed = True
        return upper(mixed, self.repeats)

    @classmethod
    def passes(cls, config: Any) -> tuple[int, ...]:
        return (1, *(1,) * config.repeats)

    @classmethod
    def options(cls, config: Any) -> list[str]:
        return [*super().options(config), *([f"n {config.repeats}"] if config.repeats != 3 else [])]
