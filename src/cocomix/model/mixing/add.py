"""`mixing: add`, intervention instead of interleaving (paper Fig. 6e)."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from cocomix.model.mixing.form import Concepts, Mixing, denormalised


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
        """See the class."""
        if self.add_mean:
            return hidden + denormalised(compressed, concepts).to(hidden.dtype)
        return hidden + ((compressed + concepts.offset) * concepts.std).to(hidden.dtype)
