"""Concept prediction (paper Eq. 2): L = (1/M) Σ_t [logsumexp(z_t) − mean_{i∈I_t} z_{t,i}] over M labelled positions.

z_t are the concept logits at position t and I_t its labels. With the next-token loss it is Eq. 4, L_NTP + λ·L.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from cocomix.model import CoCoMixConfig
from cocomix.model.targets import unpadded
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives.ntp import NextToken
from cocomix.training.objectives.objective import Batch, LossTerm, Objective, Schedule


class ConceptPrediction(Objective):
    """The concept loss, weighted by λ; `teacher_flops` per token are those of labels that are made while training."""

    name = "cocomix"
    needs = frozenset({"concept_labels"})

    def __init__(self, weight: Schedule, teacher_flops: float = 0.0) -> None:
        super().__init__(weight)
        self.teacher_flops = teacher_flops

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"concept_labels": batch["concept_labels"], "num_concept_items_in_batch": 1}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Labelled positions."""
        labels = unpadded(batch["concept_labels"], batch.get("attention_mask"))
        return {"concept_loss": labels.ne(IGNORE).any(-1).sum()}

    def __call__(self, output: Any, batch: Batch, head: nn.Module | None) -> dict[str, LossTerm]:
        """`concept_loss`, nats per labelled position, and `concept_recall`."""
        (count,) = self.counts(batch).values()
        labels = batch["concept_labels"]
        found, used = recalled_labels(output.concept_ids, labels).sum(), (labels != IGNORE).sum()
        return {
            "concept_loss": LossTerm(output.concept_loss, count, self.weight),
            "concept_recall": LossTerm(found, used, None),
        }


def default_objectives(config: PreTrainedConfig) -> tuple[Objective, ...]:
    """What a model's configuration says of its loss: next tokens, and with λ > 0 concepts (Eq. 4).

    Raises:
        CoCoMixError: it predicts hidden states, whose teacher a configuration does not name.
    """
    weight = config.concept_loss_weight if isinstance(config, CoCoMixConfig) and config.form.predicts else 0.0
    if weight == 0.0:
        return (NextToken(config),)
    if not config.has_concepts:
        raise CoCoMixError("prediction='hidden' needs a teacher: give objectives=[NextToken(…), HiddenPrediction(…)].")
    return NextToken(config), ConceptPrediction(Schedule(value=weight))


def recalled_labels(
    predicted: Tensor,  # [..., k] int64
    labels: Tensor,  # [..., k_attr] int64
) -> Tensor:
    """Which labels are among the predicted concepts at their position. Bool [..., k_attr]; no host sync."""
    return (labels.unsqueeze(-1) == predicted.unsqueeze(-2)).any(-1) & (labels != IGNORE)
