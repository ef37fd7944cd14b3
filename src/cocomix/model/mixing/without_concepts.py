"""Forms without concepts, peers of the paper's: pause tokens, a plain decoder, and decoders run several times."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.model.backbone import backbone_of
from cocomix.model.mixing.form import Concepts, Layout, Mixing, Pass, interleaved
from cocomix.runtime.errors import CoCoMixError

_SCALE = 2.5


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


class Plain(Mixing):
    """Nothing is predicted: the upper half reads h_t, and both halves together are the backbone."""

    name = "plain"
    described = "no concepts: the backbone as it is"
    arm = "plain"
    predicts = mixes_in = False


class _Repeated(Mixing):
    """Base: the upper half runs several times, which `repeats` says; there are no concepts."""

    predicts = mixes_in = False
    symbol: ClassVar[str]  # of `repeats`, in tables

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.repeats = config.repeats

    @classmethod
    def options(cls, config: Any) -> list[str]:
        return [*super().options(config), *([f"{cls.symbol} {config.repeats}"] if config.repeats != 3 else [])]


class Loop(_Repeated):
    """The upper half run again on its own output: the looped baseline of PonderLM-2 (arXiv 2509.23184).

    h⁰ = h and hⁱ⁺¹ = upper(hⁱ), `repeats` + 1 times with the same weights; the final norm is applied once, at the end.
    With `insert_layer: 0` the whole decoder is looped, as in the paper. Each pass has keys and values of its own, so
    that a cache holds `repeats` + 1 of them a block.
    """

    name = "loop"
    described = "the upper half runs again on its own output, without concepts (the looped baseline of PonderLM-2)"
    arm = "loop"
    symbol = "n"
    _normed = True  # whether the pass that runs is the last one

    def attach(self, lower: PreTrainedModel, upper: PreTrainedModel) -> None:
        norm: nn.Module = getattr(upper, backbone_of(upper.config).final_norm)
        norm.register_forward_hook(self._leave_out)

    def _leave_out(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output if self._normed else inputs[0]

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


class Ponder(_Repeated):
    """PonderLM-2 (arXiv 2509.23184): after every token a latent thought, from which the next is read.

    e_t = √(2.5·d)·E(x_t), and D the whole decoder with its final norm. A first pass makes the thoughts
    z⁰ = D(e_1, e_2, …). J Jacobi iterations, J = `repeats`, run the interleaved sequence and read the tokens' places:
    z^{j+1}_t = D(e_1, z^j_1, e_2, z^j_2, …) at e_t, which sees the thoughts before t alone. A last pass over the same,
    with z^J, reads the next token at z_t. Nothing is detached. Each pass has keys and values of its own, so that
    generation with a cache computes the same. It has no parameters of its own, and takes 3 + 2·J stacks a token.
    """

    name = "ponder"
    described = "a latent thought follows each token, found in several passes, without concepts (PonderLM-2)"
    arm = "ponder"
    symbol = "J"
    positions_per_token = 2

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        if config.insert_layer != 0:
            raise CoCoMixError(
                f"insert_layer={config.insert_layer} does not work with mixing='ponder', whose passes begin at the "
                "embeddings; set insert_layer: 0."
            )
        embeddings_of_size_one = backbone_of(config.backbone).scaled_embeddings
        self.scale = math.sqrt(_SCALE * (1 if embeddings_of_size_one else config.hidden_size))

    def forward(self, hidden: Tensor, concepts: Concepts | None, layout: Layout | None = None) -> Tensor:
        """The scaled embeddings, which every pass reads. [batch, seq, d_model]"""
        return self.scale * hidden

    def through(self, mixed: Tensor, upper: Pass) -> Any:
        thoughts = upper(mixed, 0).last_hidden_state
        for number in range(1, self.repeats + 1):
            thoughts = upper(interleaved(mixed, thoughts), number).last_hidden_state[:, ::2]
        return upper(interleaved(mixed, thoughts), self.repeats + 1)

    @classmethod
    def passes(cls, config: Any) -> tuple[int, ...]:
        return (1, *(2,) * (config.repeats + 1))
