"""What an objective is: a batch and the model's output in, named loss terms out; and how others are added.

An objective outside this package is one file with a class, made known by `@register_objective(NAME)` or by an entry
point NAME of the group `cocomix.objectives`; a recipe asks for it with `auxiliary: {NAME: WEIGHT}`. Its class is called
with the weight and, by name, with what other arguments the recipe gives: `auxiliary: {NAME: {weight: …, ARGUMENT: …}}`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.data import Tokens
from cocomix.model import next_tokens
from cocomix.model.head_losses import HeadLoss
from cocomix.runtime.flops import product_flops
from cocomix.runtime.ignore import IGNORE
from cocomix.runtime.registry import Registry
from cocomix.training.objectives.schedule import Schedule

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class LossTerm:
    """A part of the loss, or something that is measured beside it.

    Attributes:
        sum: over what `count` counts; nats unless the name says otherwise. []
        count: of the batch. Training divides by that of the whole optimizer step, of all processes. []
        weight: in the loss; `None` for what is only measured, such as a recall.
    """

    sum: Tensor
    count: Tensor
    weight: Schedule | None


class Objective(ABC):
    """A loss term of a training step. The objectives of a run share one forward pass of the model.

    In the step from which the weight is 0 for good, an objective is not called any more: nothing that it `needs` is
    read or made, no teacher runs for it.

    Attributes:
        name: tells objectives of a run apart; in recipes, that of one from outside.
        needs: columns of the batch beside `input_ids` and `labels`.
        weight: of its term.
        alone: while its weight is not 0, no other is called in training.
        teacher_flops: per token, of what runs beside the model for it.
        outside_forward: uses the model's own embedding or head outside its forward pass, for which FSDP gathers them.
        model: the one that is trained, from the moment a Trainer has it.
    """

    name: ClassVar[str]
    alone: ClassVar[bool] = False
    needs: frozenset[str] = frozenset()
    teacher_flops: float = 0.0
    outside_forward: bool = False
    model: PreTrainedModel

    def __init__(self, weight: Schedule | float) -> None:
        self.weight = Schedule.model_validate(weight)

    def prepare(self, data: Tokens, model: PreTrainedModel) -> None:  # noqa: B027 - most need nothing
        """See the run's data and the model before training, for an objective that reads more of them than batches."""

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model's `forward` is called with for it."""
        return {}

    def head_losses(self, batch: Batch) -> dict[str, HeadLoss]:
        """Losses of the next-token logits, for flat positions; their sums are in `output.head_losses`, by these names.

        They are computed where the logits are made, chunk by chunk.
        """
        return {}

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What each trained term sums over, by the batch alone: a step's counts are needed before its first loss."""

    @abstractmethod
    def __call__(self, output: Any, batch: Batch, head: nn.Module | None) -> dict[str, LossTerm]:
        """The terms, by their names in logs.

        Args:
            output: of the model, called with the `inputs` of all objectives.
            batch: on the model's device; beside its columns, `progress`: the step, counted from 0, and how many there
                are.
            head: from `build_head`.
        """

    def build_head(self, config: PreTrainedConfig) -> nn.Module | None:
        """A module of its own, which is trained and kept in checkpoints with the model, and not exported with it."""
        return None

    def extra_flops_per_token(self, config: PreTrainedConfig) -> float:
        """FLOPs of a training token beside the model's, while the weight is not 0: a teacher's, and its head's."""
        with torch.device("meta"):
            head = self.build_head(config)
        return self.teacher_flops + (0.0 if head is None else 3.0 * product_flops(head))  # twice as many backward


class SingleTerm(Objective):
    """An objective of one term, `NAME_loss`, by default over the target tokens. A class of it gives the sum."""

    reads_states: ClassVar[bool] = False  # whether the model's states after every block are asked for

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"output_hidden_states": True} if self.reads_states else {}

    def counted(self, batch: Batch) -> Tensor:
        """What the sum runs over; by default positions with a target token. Bool [batch, seq]"""
        return next_tokens(batch["labels"], batch.get("attention_mask")).ne(IGNORE)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {f"{self.name}_loss": self.counted(batch).sum()}

    def __call__(self, output: Any, batch: Batch, head: nn.Module | None) -> dict[str, LossTerm]:
        ((name, count),) = self.counts(batch).items()
        return {name: LossTerm(self.summed(output, batch, head), count, self.weight)}

    def summed(self, output: Any, batch: Batch, head: Any) -> Tensor:
        """The sum, of what `__call__` is given; by default that of `head_losses`. []"""
        loss: Tensor = output.head_losses[f"{self.name}_loss"]
        return loss


OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective",
    "cocomix.objectives",
    {
        "fsp": "cocomix.training.objectives.fsp:FutureSummary",
        "hint": "cocomix.training.objectives.hint:Hint",
        "mtp_headless": "cocomix.training.objectives.mtp_headless:HeadlessMTP",
        "mtp_parallel": "cocomix.training.objectives.mtp_parallel:ParallelMTP",
        "mtp_sequential": "cocomix.training.objectives.mtp_sequential:SequentialMTP",
        "ncp": "cocomix.training.objectives.ncp:NextConceptPrediction",
        "nextlat": "cocomix.training.objectives.nextlat:NextLatent",
        "nitp": "cocomix.training.objectives.nitp:NextImplicitState",
        "prefix_token": "cocomix.training.objectives.prefix_token:PrefixToken",
        "superposition": "cocomix.training.objectives.superposition:Superposition",
        "top": "cocomix.training.objectives.top:TokenOrder",
    },
)
register_objective, objective_type = OBJECTIVES.register, OBJECTIVES.find
