"""`mixing: interleave`, the paper's form (Eq. 3)."""

from torch import Tensor

from cocomix.model.mixing.form import Concepts, Mixing, denormalised, interleaved


class Interleave(Mixing):
    """The sequence becomes (h_1, ĉ_1, h_2, ĉ_2, …), and the next token is read at ĉ_t."""

    name = "interleave"
    described = "after each hidden state stands its concept vector, where the next token is read (Eq. 3)"
    arm = ""
    positions_per_token = 2

    def mix(self, hidden: Tensor, compressed: Tensor, concepts: Concepts) -> Tensor:
        """See the class."""
        return interleaved(hidden, denormalised(compressed, concepts))
