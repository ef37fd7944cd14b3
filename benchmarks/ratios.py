"""What a section of the benchmarks reports: ratios of what was measured in the same round."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Ratio", "Section", "ratio"]


@dataclass(frozen=True)
class Ratio:
    """One figure: numerator ÷ denominator, formed within each round.

    Attributes:
        case: what was varied: shape, dtype, batch.
        quantity: what is divided by what, for example `CoCoMix ÷ NTP`.
        minimum: over rounds.
        median: over rounds.
        maximum: over rounds.
        numerator: median over rounds, in `unit`.
        denominator: median over rounds, in `unit`.
        unit: of numerator and denominator, such as `s` or `MiB`.
        rounds: how many.
        by_flops: the same ratio by floating-point operations; None where no formula says it.
        target: what was set as the goal for this case, for example `≤ 1.75`.
        axis: name of the varied size, for figures that belong to a curve.
        x: its value.
    """

    case: str
    quantity: str
    minimum: float
    median: float
    maximum: float
    numerator: float
    denominator: float
    unit: str
    rounds: int
    by_flops: float | None = None
    target: str = ""
    axis: str = ""
    x: float | None = None

    @property
    def distance(self) -> float | None:
        """The measured ratio in units of the one by FLOPs; 1 = the time follows the FLOPs."""
        return None if self.by_flops is None else self.median / self.by_flops


def ratio(
    case: str, quantity: str, numerator: Sequence[float], denominator: Sequence[float], unit: str = "s", **more: Any
) -> Ratio:
    """Divide two series round by round; `more` are the optional fields of `Ratio`."""
    each = [above / below for above, below in zip(numerator, denominator, strict=True)]
    return Ratio(
        case,
        quantity,
        min(each),
        statistics.median(each),
        max(each),
        statistics.median(numerator),
        statistics.median(denominator),
        unit,
        len(each),
        **more,
    )


@dataclass(frozen=True)
class Section:
    """What one section measured.

    Attributes:
        title: heading in the table page.
        caption: one or two sentences that say what the ratios mean.
        config: sizes, as JSON values.
        ratios: the figures.
        notes: what was left out, and why.
    """

    title: str
    caption: str
    config: dict[str, Any]
    ratios: list[Ratio]
    notes: list[str] = field(default_factory=list)
