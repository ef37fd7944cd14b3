"""The objectives that a recipe adds by name, `auxiliary: {NAME: …}`: their settings, and from these the objectives."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError, create_model, model_serializer

from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Section, describe_validation_error, settings_of
from cocomix.training.objectives.objective import Objective, Schedule, objective_type


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
