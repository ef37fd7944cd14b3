"""`attribution`: the concepts that matter most for the teacher's prediction (the paper's labels, Eq. 1)."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from cocomix.concepts.decoder import GradientScope
from cocomix.concepts.dictionary import SparseCodes
from cocomix.concepts.labeller import ConceptLabels
from cocomix.concepts.labellers.contextual import CentredLabeller
from cocomix.concepts.labellers.teacher_labeller import TeacherLabeller, TeacherLabellerConfig
from cocomix.concepts.scoring import Activation, Sign
from cocomix.concepts.teacher import ConceptTeacher


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
    centre_by_token: bool = False
    """Take away the attribution's mean over the positions of the same token, as `contextual` does of activations."""
    sample_tokens: int = Field(default=2_000_000, ge=1)
    """Tokens of the training split that these means are taken over."""

    def choices(self) -> dict[str, Any]:
        centring = set() if self.centre_by_token else {"centre_by_token", "sample_tokens"}
        return {name: value for name, value in super().choices().items() if name not in centring}

    @model_validator(mode="after")
    def _only_active_concepts_are_centred(self) -> Self:
        if self.centre_by_token and self.activation == "pre":
            raise ValueError("centre_by_token takes active concepts as candidates; use activation: latent")
        return self


class AttributionLabeller(TeacherLabeller):
    """Labels by attribution; scores are gradients of the summed loss, so they do not depend on the batch."""

    kind = "attribution"
    config_type: ClassVar = AttributionConfig

    @classmethod
    def build(cls, config: AttributionConfig, **options: Any) -> "TeacherLabeller":  # type: ignore[override]
        if config.centre_by_token:
            return CentredAttributionLabeller.build(config, **options)
        return super().build(config, **options)

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        return self.teacher.label(input_ids, attention_mask, k, dtype=self.dtype, reduction="sum", **self.settings)

    def flops_per_token(self, seq: int) -> float:
        # With `activation: pre` the gradient, too, is multiplied with the dictionary's directions.
        return _flops_per_token(self.teacher, seq, encodings=2 if self.settings["activation"] == "pre" else 1)


class CentredAttributionLabeller(CentredLabeller):
    """Labels by attribution minus its mean over the positions of the same token, which is the score."""

    kind = "attribution"
    config_type: ClassVar = AttributionConfig

    def __init__(self, teacher: ConceptTeacher, **settings: Any) -> None:
        super().__init__(teacher, **{**settings, "centre_by_token": True})

    def scored(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[SparseCodes, Tensor]:
        gradient: GradientScope = self.settings["gradient"]
        return self.teacher.attributed_concepts(input_ids, attention_mask, gradient=gradient, dtype=self.dtype)

    def flops_per_token(self, seq: int) -> float:
        return _flops_per_token(self.teacher, seq, encodings=1)

    def fit_flops_per_token(self, seq: int) -> float:
        return self.flops_per_token(seq)  # the means are of attributions, too


def _flops_per_token(teacher: ConceptTeacher, seq: int, encodings: int) -> float:
    """The whole teacher forward, backward from the loss to the hooked block, and products with the dictionary.

    Backward is with respect to activations alone, so it costs what the forward pass of that part costs.
    """
    below, whole = (teacher.decoder.flops_per_token(seq, up_to=end) for end in ("layer", "head"))
    return whole + (whole - below) + 2.0 * teacher.n_concepts * teacher.decoder.d_model * encodings
