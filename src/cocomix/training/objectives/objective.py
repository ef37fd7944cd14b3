"""What an objective is: a batch and the model's output in, named and weighted loss terms out; and how others are added.

An objective outside this package is one file with a class, made known by `@register_objective(NAME)` or by an entry
point NAME of the group `cocomix.objectives`; a recipe asks for it with `auxiliary: {NAME: WEIGHT}`. Its class is called
with the weight and, by name, with what other arguments the recipe gives: `auxiliary: {NAME: {weight: …, ARGUMENT: …}}`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationError, create_model, model_serializer, model_validator
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.data import Tokens
from cocomix.model.targets import HeadLoss, next_tokens
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.flops import product_flops
from cocomix.runtime.ignore import IGNORE
from cocomix.runtime.registry import Registry
from cocomix.runtime.section import Section, describe_validation_error, settings_of

Batch = Mapping[str, Any]


class Schedule(Section):
    """A loss term's weight over a run of `total` optimizer steps; in recipes a number, or a mapping of these fields.

    concept_loss_weight: 0.1                                        # the same all the time
    concept_loss_weight: {shape: linear, until: 0.25}               # from 0.1 down to 0 in the first quarter
    concept_loss_weight: {shape: linear, since: 0.2, until: 0.25}   # 0.1 for a fifth, then down to 0 at the quarter
    concept_loss_weight: {shape: stop, value: 0.2, until: 0.5}      # 0.2 in the first half, then 0
    concept_loss_weight: {stages: {0: 0.1, 0.5: 0.05, 0.75: 0}}     # from the start, the half, three quarters
    """

    shape: Literal["constant", "linear", "stages", "stop"] = "constant"
    """`linear` is `value` until `since` and falls to 0 at `until`; `stop` is `value` until then and 0 afterwards."""
    value: float = Field(default=0.1, ge=0.0, allow_inf_nan=False)
    """The weight at the beginning (paper: 0.1 for λ as well as λ_KD)."""
    since: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the run's steps at which `linear` begins to fall."""
    until: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the run's steps after which `linear` and `stop` are 0."""
    stages: dict[float, float] | None = None
    """Weights by the share of the run's steps from which they hold; the first from 0."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if isinstance(value, Schedule):
            return value
        if not isinstance(value, Mapping):
            return {"value": value}
        return {"shape": "stages", **value} if value.get("stages") else value

    @model_validator(mode="after")
    def _fields_fit_together(self) -> "Schedule":
        if (self.shape == "stages") != bool(self.stages):
            raise ValueError("shape: stages and stages: {SHARE: WEIGHT, …} need one another")
        unread_by = {"constant": {"since", "until"}, "stages": {"value", "since", "until"}, "stop": {"since"}}
        if unread := unread_by.get(self.shape, set()) & self.model_fields_set:
            raise ValueError(f"{' and '.join(sorted(unread))} would not be read with shape: {self.shape}; leave it out")
        if self.since >= self.until:
            raise ValueError(f"since: {self.since:g} must be below until: {self.until:g}")
        if self.stages:
            shares = list(self.stages)
            if shares[0] != 0 or shares != sorted(shares) or shares[-1] >= 1:
                raise ValueError(f"stages begin at the rising shares {shares} of a run; they must go from 0 to below 1")
            if not all(0.0 <= weight < math.inf for weight in self.stages.values()):
                raise ValueError(f"the weights of stages, {list(self.stages.values())}, must be numbers not below 0")
        return self

    @model_serializer(mode="wrap")
    def _to_number(self, handler: Any) -> Any:
        if self.shape == "constant":
            return self.value
        read = {"stages"} if self.stages else {"value", "until", *(["since"] if self.since else [])}
        return {name: value for name, value in handler(self).items() if name in {"shape", *read}}

    @property
    def peak(self) -> float:
        """The largest weight."""
        return max(self.stages.values()) if self.stages else self.value

    @property
    def changes(self) -> bool:
        """Whether the weight is not the same all the time."""
        return self.shape != "constant"

    def weight(self, step: int, total: int) -> float:
        """The weight in optimizer step `step`, counted from 0, of `total`."""
        if self.stages:
            return [weight for share, weight in self.stages.items() if _first_step(share, total) <= step][-1]
        if self.shape == "constant":
            return self.value
        start, end = (_first_step(share, total) for share in (self.since, self.until))
        if step >= end:
            return 0.0
        falls = self.shape == "linear" and step > start
        return self.value * (1.0 - (step - start) / (end - start)) if falls else self.value

    def steps(self, total: int) -> int:
        """After how many of `total` steps the weight is 0 for good."""
        if self.peak == 0.0:
            return 0
        if self.shape in ("linear", "stop"):
            return _first_step(self.until, total)
        stages = self.stages or {0.0: self.value}
        begins = [_first_step(share, total) for share in stages]
        parts = zip(begins, [*begins[1:], total], stages.values(), strict=True)
        return max((end for begin, end, weight in parts if weight and begin < end), default=0)

    def __str__(self) -> str:
        if self.stages:
            return ", ".join(f"{weight:g} from {share:.0%}" for share, weight in self.stages.items())
        if self.shape == "constant":
            return f"{self.value:g}"
        falls = f"falling from {self.since:.0%} to 0 at" if self.since else "falling to 0 at"
        return f"{self.value:g} {falls if self.shape == 'linear' else 'until'} {self.until:.0%}"


ALWAYS = Schedule(value=1.0)


def _first_step(share: float, total: int) -> int:
    return math.ceil(share * total - 1e-9)  # 0.1 · 30 is a little more than 3 as a float


@dataclass(frozen=True)
class LossTerm:
    """A part of the loss, or something that is measured beside it."""

    sum: Tensor  # over what `count` counts; nats unless the name says otherwise. []
    count: Tensor  # of the batch. Training divides by that of the whole optimizer step, of all processes. []
    weight: Schedule | None  # in the loss; `None` for what is only measured, such as a recall


class Objective(ABC):
    """A loss term of a training step. The objectives of a run share one forward pass of the model.

    In the step from which the weight is 0 for good, an objective is not called any more: nothing that it `needs` is
    read or made, no teacher runs for it.
    """

    name: ClassVar[str]  # tells objectives of a run apart; in recipes, that of one from outside
    alone: ClassVar[bool] = False  # while its weight is not 0, no other is called in training
    needs: frozenset[str] = frozenset()  # columns of the batch beside `input_ids` and `labels`
    teacher_flops: float = 0.0  # per token, of what runs beside the model for it
    outside_forward: bool = False  # whether it uses the model's embedding or head where FSDP has not gathered them
    model: PreTrainedModel  # the one that is trained, from the moment a Trainer has it

    def __init__(self, weight: Schedule | float) -> None:
        self.weight = Schedule.model_validate(weight)

    def prepare(self, data: Tokens, model: PreTrainedModel) -> None:  # noqa: B027 - most need nothing
        """See the run's data and the model before training, for an objective that reads more of them than batches."""

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model's `forward` is called with for it."""
        return {}

    def head_losses(self, batch: Batch) -> dict[str, HeadLoss]:
        """Losses of the next-token logits, for flat positions; their sums are in `output.head_losses`, by these names.

        They are computed where the logits are made, chunk by chunk, with the next token's in one pass.
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


class Auxiliary(Section):
    """The weight of an objective and, in subclasses, its own settings: the arguments of its class.

    auxiliary: {top: 0.5}                                  # a weight, or how it changes
    auxiliary: {top: {weight: 0.5, scores: released}}      # with settings of its own
    auxiliary: {top: }                                     # all as its paper has it
    """

    weight: Schedule = Schedule()

    @model_serializer(mode="wrap")
    def _alone(self, handler: Any) -> Any:
        values = handler(self)
        return values if len(values) > 1 else values["weight"]

    def describe(self, name: str) -> str:
        """The name and what is not as the objective's class has it, for tables."""
        fields = type(self).model_fields
        plain = type(self) is Auxiliary  # whose weight is nobody's choice but the recipe's
        changed = {k: v for k, v in self if plain or not (fields[k].is_required() or v == fields[k].default)}
        return " ".join([name, *(f"{v}" if k == "weight" else f"{k} {v}" for k, v in changed.items())])


def auxiliary(name: str, given: Any) -> Auxiliary:
    """What a recipe says of an objective: a weight, settings, or nothing.

    Raises:
        ValueError: a setting is unknown or out of range.
    """
    if isinstance(given, Auxiliary):
        return given
    try:
        settings = _section_of(objective_type(name))
    except CoCoMixError:
        settings = Auxiliary  # training refuses the name, when what registers it has been imported
    mapping = isinstance(given, Mapping)
    own = mapping and (set(given) & set(settings.model_fields) or not set(given) & set(Schedule.model_fields))
    values = dict(given) if own else {} if given is None else {"weight": given}
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{name}: {describe_validation_error(error, settings)}") from None


def auxiliary_objective(name: str, settings: Auxiliary) -> Objective:
    """The objective of a name; refused where there is none, or its settings do not fit together."""
    own = {key: value for key, value in settings if key != "weight"}
    return objective_type(name)(settings.weight, **own)


@cache
def _section_of(kind: type[Objective]) -> type[Auxiliary]:
    """The arguments of an objective's class as a section; the plain one where none has a default."""
    fields = settings_of(kind)
    if all(field.is_required() for _, field in fields.values()):
        return Auxiliary
    made: type[Auxiliary] = create_model(kind.__name__, __base__=Auxiliary, __module__=__name__, **fields)
    return made
