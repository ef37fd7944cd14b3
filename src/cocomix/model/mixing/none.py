"""`mixing: none`, prediction only (paper Fig. 6d)."""

from torch import Tensor

from cocomix.model.mixing.form import Concepts, Layout, Mixing


class PredictOnly(Mixing):
    """Concepts are predicted and change nothing else: the upper half reads h_t."""

    name = "none"
    described = "concepts are predicted and not mixed in (paper Fig. 6d)"
    arm = "prediction only"
    mixes_in = False

    def forward(self, hidden: Tensor, concepts: Concepts | None, layout: Layout | None = None) -> Tensor:
        """The hidden states."""
        return hidden
