"""`attribution`: the concepts that matter most for the teacher's prediction (the paper's labels, Eq. 1)."""

from typing import ClassVar, Literal

from torch import Tensor

from cocomix.concepts.decoder import GradientScope, NumberFormat
from cocomix.concepts.labeller import ConceptLabels
from cocomix.concepts.labellers.teacher_labeller import TeacherLabeller, TeacherLabellerConfig
from cocomix.concepts.scoring import Activation, Sign
from cocomix.concepts.teacher import ConceptTeacher

__all__ = ["AttributionConfig", "AttributionLabeller"]


class AttributionConfig(TeacherLabellerConfig):
    """Settings of `attribution`; the defaults are the released code's."""

    kind: Literal["attribution"] = "attribution"
    """The k concepts with the largest attribution: activation times gradient of the teacher's loss."""
    activation: Activation = "latent"
    """`latent` = after the dictionary's activation, only active concepts are candidates; `pre` = before it (paper Eq.
    1), every concept is."""
    gradient: GradientScope = "sequence"
    """`sequence` = of the loss of all targets; `next` = of the loss of the position's own next token."""
    sign: Sign = "loss"
    """`loss` = concepts that raise the loss; `logprob` = concepts that lower it; `abs` = either."""


class AttributionLabeller(TeacherLabeller):
    """Labels by attribution; scores are gradients of the summed loss, so they do not depend on the batch."""

    kind = "attribution"
    algorithm = "1"
    config_type: ClassVar = AttributionConfig

    def __init__(
        self,
        teacher: ConceptTeacher,
        *,
        activation: Activation = "latent",
        gradient: GradientScope = "sequence",
        sign: Sign = "loss",
        dtype: NumberFormat = "float32",
    ) -> None:
        super().__init__(teacher, dtype=dtype, activation=activation, gradient=gradient, sign=sign)

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        """See `ConceptTeacher.label`."""
        return self.teacher.label(input_ids, attention_mask, k, dtype=self.dtype, reduction="sum", **self.settings)

    def flops_per_token(self, seq: int) -> float:
        """The whole teacher forward, and backward from the loss to the hooked block.

        The backward pass is with respect to activations alone, so it costs what the forward pass of that part costs.
        With `activation: pre` the gradient, too, is multiplied with the dictionary's directions.
        """
        decoder = self.teacher.decoder
        below, whole = (decoder.flops_per_token(seq, up_to=end) for end in ("layer", "head"))
        products = 2.0 * self.num_concepts * decoder.d_model
        return whole + (whole - below) + products * (2 if self.settings["activation"] == "pre" else 1)
