"""`activation`: the most active concepts (paper Fig. 6a)."""

from typing import ClassVar, Literal

from torch import Tensor

from cocomix.concepts.labeller import ConceptLabels
from cocomix.concepts.labellers.teacher_labeller import TeacherLabeller, TeacherLabellerConfig
from cocomix.concepts.scoring import best_labels


class ActivationConfig(TeacherLabellerConfig):
    """Settings of `activation`."""

    kind: Literal["activation"] = "activation"
    """The k most active concepts."""


class ActivationLabeller(TeacherLabeller):
    """Labels by activation, which is the score; the teacher's blocks above the layer are not run."""

    kind = "activation"
    config_type: ClassVar = ActivationConfig
    reads_hidden = True

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        codes, labelled = self.teacher.active_concepts(input_ids, attention_mask, dtype=self.dtype)
        return best_labels(codes, codes.values, labelled, k)
