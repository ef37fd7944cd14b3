"""`mixing: plain`, a decoder without concepts, for peers whose addition is elsewhere in the model."""

from torch import Tensor

from cocomix.model.mixing.form import Concepts, Layout, Mixing


class Plain(Mixing):
    """Nothing is predicted: the upper half reads h_t, and both halves together are the backbone."""

    name = "plain"
    described = "no concepts: the backbone as it is"
    arm = "plain"
    predicts = mixes_in = False

    def forward(self, hidden: Tensor, concepts: Concepts | None, layout: Layout | None = None) -> Tensor:
        """The hidden states."""
        return hidden
