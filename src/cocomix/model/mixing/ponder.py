"""`mixing: ponder`, PonderLM-2 (arXiv 2509.23184): after every token a latent thought, from which the next is read.

e_t = √(2.5·d)·E(x_t), and D the whole decoder with its final norm. A first pass makes the thoughts z⁰ = D(e_1, e_2, …).
J Jacobi iterations, J = `repeats`, run the interleaved sequence and read the tokens' places:
z^{j+1}_t = D(e_1, z^j_1, e_2, z^j_2, …) at e_t, which sees the thoughts before t alone. A last pass over the same, with
z^J, reads the next token at z_t. Nothing is detached. Each pass has keys and values of its own, so that generation with
a cache computes the same.
"""

import math
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from cocomix.model.backbone import backbone_of
from cocomix.model.mixing.form import Concepts, Layout, Mixing, Pass, interleaved
from cocomix.runtime.errors import CoCoMixError

_SCALE = 2.5


class Ponder(Mixing):
    """A peer for plain decoders, without parameters of its own: 3 + 2·`repeats` stacks a token."""

    name = "ponder"
    described = "a latent thought follows each token, found in several passes, without concepts (PonderLM-2)"
    arm = "ponder"
    positions_per_token = 2
    predicts = mixes_in = False

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        if config.insert_layer != 0:
            raise CoCoMixError(
                f"insert_layer={config.insert_layer} does not work with mixing='ponder', whose passes begin at the "
                "embeddings; set insert_layer: 0."
            )
        self.repeats = config.repeats
        embeddings_of_size_one = backbone_of(config.backbone).scaled_embeddings
        self.scale = math.sqrt(_SCALE * (1 if embeddings_of_size_one else config.hidden_size))

    def forward(self, hidden: Tensor, concepts: Concepts | None, layout: Layout | None = None) -> Tensor:
        """The scaled embeddings, which every pass reads. [batch, seq, d_model]"""
        return self.scale * hidden

    def through(self, mixed: Tensor, upper: Pass) -> Any:
        """See the module's docstring."""
        thoughts = upper(mixed, 0).last_hidden_state
        for number in range(1, self.repeats + 1):
            thoughts = upper(interleaved(mixed, thoughts), number).last_hidden_state[:, ::2]
        return upper(interleaved(mixed, thoughts), self.repeats + 1)

    @classmethod
    def passes(cls, config: Any) -> tuple[int, ...]:
        return (1, *(2,) * (config.repeats + 1))

    @classmethod
    def options(cls, config: Any) -> list[str]:
        return [*super().options(config), *([f"J {config.repeats}"] if config.repeats != 3 else [])]
