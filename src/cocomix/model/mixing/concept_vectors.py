"""The paper's forms of mixing and our `residual`: a concept vector ĉ_t meets the hidden state h_t, or does not."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from cocomix.model.mixing.form import Concepts, Mixing, denormalised, interleaved


class Interleave(Mixing):
    """The sequence becomes (h_1, ĉ_1, h_2, ĉ_2, …), and the next token is read at ĉ_t."""

    name = "interleave"
    described = "after each hidden state stands its concept vector, where the next token is read (Eq. 3)"
    arm = ""
    positions_per_token = 2

    def mix(self, hidden: Tensor, compressed: Tensor, concepts: Concepts) -> Tensor:
        return interleaved(hidden, denormalised(compressed, concepts))


class Residual(Mixing):
    """Interleaved like Eq. 3, with ĉ_t = h_t + σ·compressed: where concepts say nothing, h_t stands there again."""

    name = "residual"
    described = "as interleave, with the concept vector added to the hidden state it follows (our option)"
    arm = "residual"
    positions_per_token = 2

    def mix(self, hidden: Tensor, compressed: Tensor, concepts: Concepts) -> Tensor:
        return interleaved(hidden, hidden + compressed * concepts.std)


class Add(Mixing):
    """h_t + ĉ_t, without lengthening the sequence.

    ĉ_t carries the mean of h_t as in Eq. 3, so that it is added a second time; with `add_mean: false` (our option) it
    does not, and nothing is added as long as the compression is zero. Decoders with layer norms compute the same
    either way, decoders with RMS norms do not.
    """

    name = "add"
    described = "the concept vector is added to the hidden state (paper Fig. 6e)"
    arm = "add"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.add_mean = config.add_mean

    @classmethod
    def options(cls, config: Any) -> list[str]:
        return super().options(config) + ([] if config.add_mean else ["without mean"])

    def mix(self, hidden: Tensor, compressed: Tensor, concepts: Concepts) -> Tensor:
        if self.add_mean:
            return hidden + denormalised(compressed, concepts).to(hidden.dtype)
        return hidden + ((compressed + concepts.offset) * concepts.std).to(hidden.dtype)


class PredictOnly(Mixing):
    """Concepts are predicted and change nothing else: the upper half reads h_t."""

    name = "none"
    described = "concepts are predicted and not mixed in (paper Fig. 6d)"
    arm = "prediction only"
    mixes_in = False
