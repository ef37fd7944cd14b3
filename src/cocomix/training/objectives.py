"""What a training step computes. Arms differ here and nowhere else in the training loop.

An objective is a function from a model and a batch to an `ObjectiveOutput`; a new arm is a new function and a name in
`OBJECTIVES`. What a teacher says of a batch comes in the batch itself: `concept_labels`, `hidden_targets` and
`teacher_targets` (`cocomix.training.distillation` puts the last two there).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cocomix.model import next_tokens
from cocomix.model.fused_head import Divergence, fused_head
from cocomix.model.targets import divisor
from cocomix.runtime.ignore import IGNORE

__all__ = ["OBJECTIVES", "Divisors", "Objective", "ObjectiveOutput", "concept_recall_counts"]


class Divisors(NamedTuple):
    """What summed losses are divided by: counts over *all* micro-batches (and processes) of an optimizer step.

    `None` means the counts of the batch itself, which is what evaluation and plain use want.
    """

    tokens: Tensor | int | None = None
    concept_positions: Tensor | int | None = None


@dataclass
class ObjectiveOutput:
    """What an objective yields for one micro-batch.

    Attributes:
        loss: to be differentiated; of a `kd_loss`, `Taught` adds its share. []
        terms: parts of the loss, in nats but for `hidden_loss`, already divided by the `Divisors`, so that they add up
            over a step. [] each
        ratios: (numerator, denominator) pairs that are summed before they are divided, such as a recall. [] each
    """

    loss: Tensor
    terms: dict[str, Tensor]
    ratios: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


Objective = Callable[[torch.nn.Module, dict[str, Any], Divisors], ObjectiveOutput]


def next_token_prediction(model: torch.nn.Module, batch: dict[str, Any], divisors: Divisors) -> ObjectiveOutput:
    """Next-token cross-entropy of a plain decoder (NTP): the baseline, and how a teacher is trained.

    Args:
        model: a causal LM.
        batch: `input_ids` and `labels`, [batch, seq] int64, `attention_mask` where there is padding, and `position_ids`
            where documents are kept apart.
        divisors: only `tokens` is used.
    """
    targets = batch.get("teacher_targets")
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch.get("attention_mask"),
        position_ids=batch.get("position_ids"),
        labels=batch["labels"],
        num_items_in_batch=divisors.tokens,
        use_cache=False,
    )
    terms = {"ntp_loss": output.loss}
    if targets is not None:
        counted = next_tokens(batch["labels"], batch.get("attention_mask")).ne(IGNORE)
        summed = fused_head(output.logits.flatten(0, 1), None, None, Divergence.of_batch(targets, counted)).loss_sum
        terms["kd_loss"] = summed / divisor(counted, divisors.tokens)
    return ObjectiveOutput(output.loss, terms)


def concept_mixing(model: torch.nn.Module, batch: dict[str, Any], divisors: Divisors) -> ObjectiveOutput:
    """CoCoMix (Eq. 4): next-token loss plus λ times the concept loss, or the loss of predicted hidden states.

    Args:
        model: a `CoCoMixForCausalLM`.
        batch: `input_ids` and `labels` [batch, seq], and `concept_labels` [batch, seq, k_attr], all int64, and
            `attention_mask` and `position_ids` as above. Without
            `concept_labels` only mixing is trained (the paper's "mixing only" ablation, and its pause tokens). A model
            that predicts hidden states takes `hidden_targets` [batch, seq, d_teacher] instead.
        divisors: global counts of target tokens and labelled positions.
    """
    concept_labels = batch.get("concept_labels")
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch.get("attention_mask"),
        position_ids=batch.get("position_ids"),
        labels=batch["labels"],
        concept_labels=concept_labels,
        hidden_targets=batch.get("hidden_targets"),
        teacher_targets=batch.get("teacher_targets"),
        num_items_in_batch=divisors.tokens,
        num_concept_items_in_batch=divisors.concept_positions,
        output_logits=False,
        use_cache=False,
    )
    names = ("ntp_loss", "concept_loss", "hidden_loss", "kd_loss")
    terms = {name: output[name] for name in names if output.get(name) is not None}
    if concept_labels is None:
        return ObjectiveOutput(output.loss, terms)
    recall = concept_recall_counts(output.concept_ids, concept_labels)
    return ObjectiveOutput(output.loss, terms, {"concept_recall": recall})


OBJECTIVES: dict[str, Objective] = {"ntp": next_token_prediction, "cocomix": concept_mixing}


def concept_recall_counts(
    predicted: Tensor,  # [batch, seq, k] int64
    labels: Tensor,  # [batch, seq, k_attr] int64
) -> tuple[Tensor, Tensor]:
    """How many label concepts are among the predicted ones, and how many there are. Two scalars, no host sync."""
    used = labels != IGNORE
    found = (labels.unsqueeze(-1) == predicted.unsqueeze(-2)).any(-1) & used
    return found.sum(), used.sum()
