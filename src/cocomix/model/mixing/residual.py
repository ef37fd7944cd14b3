"""`mixing: residual`, our option beside the paper's form."""

from torch import Tensor

from cocomix.model.mixing.form import Concepts, Mixing, interleaved


class Residual(Mixing):
    """Interleaved like Eq. 3, with ĉ_t = h_t + σ·compressed: where concepts say nothing, h_t stands there again."""

    name = "residual"
    described = "as interleave, with the concept vector added to the hidden state it follows (our option)"
    arm = "residual"
    positions_per_token = 2

    def mix(self, hidden: Tensor, compressed: Tensor, concepts: Concepts) -> Tensor:
        """See the class."""
        return interleaved(hidden, hidden + compressed * concepts.std)
