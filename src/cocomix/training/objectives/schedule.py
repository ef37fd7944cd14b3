"""The weight of a loss term, as a function of the step."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from cocomix.runtime.section import Section


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
        given = self.model_fields_set
        read_by = {"constant": {"value"}, "stages": set(), "stop": {"value", "until"}}
        unread = ({"value", "since", "until"} - read_by.get(self.shape, given)) & given
        if unread:
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
        end = _first_step(self.until, total)
        if self.shape == "constant":
            return self.value
        if step >= end:
            return 0.0
        start = _first_step(self.since, total)
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
    """The first step of the part of a run that begins at a share of it."""
    return math.ceil(share * total - 1e-9)  # 0.1 · 30 is a little more than 3 as a float
