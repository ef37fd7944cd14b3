"""From texts to conclusions: which concepts steer, and how texts change with the factor."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cocomix.interpret.rank_statistics import RankTrend, bootstrap_interval, rank_trend
from cocomix.interpret.steer_effects import ARMS, Arm, SteerMeasurements

__all__ = [
    "LEVEL",
    "MINIMAL_CONCEPTS",
    "ConceptScore",
    "Curve",
    "control_p_value",
    "curve",
    "score_concepts",
    "steering_shares",
]

LEVEL = 0.05
"""A concept steers if a measure's rank correlation with the factor is positive with a p-value below this."""


MINIMAL_CONCEPTS = 6
"""Fewer concepts cannot differ from the control with p < 0.05."""


@dataclass(frozen=True)
class ConceptScore:
    """How a measure of one concept in the generated text goes with the factor.

    Attributes:
        concept: the concept measured.
        control: the concept turned in the control arm.
        trends: for each arm, the rank correlation of factor and measure; the student's is the steering score.
        gain: the measure at the largest minus the measure at the smallest factor, in the student's texts.
    """

    concept: int
    control: int
    trends: dict[Arm, RankTrend]
    gain: float

    def steers(self, arm: Arm = "student") -> bool:
        """Whether an arm meets the criterion, see `LEVEL`."""
        trend = self.trends[arm]
        return trend.correlation > 0 and trend.p_value < LEVEL


class Curve(NamedTuple):
    """A measurement at every factor, averaged over concepts and prompts, with its 95% interval over prompts."""

    mean: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]


def score_concepts(measured: SteerMeasurements, measure: str = "activation") -> tuple[ConceptScore, ...]:
    """The concepts that were turned, highest steering score first.

    Args:
        measured: the texts' measurements.
        measure: `activation`: does the concept appear in the text, as the teacher's dictionary reads it? `following`:
            do the tokens appear that follow its labels?
    """
    settings = measured.settings
    factors = np.array(settings.factors)
    scores = []
    for index, (concept, control) in enumerate(zip(measured.concepts, measured.controls, strict=True)):
        trends = {
            arm: rank_trend(
                factors, measured.values[arm][measure][index], resamples=settings.resamples, seed=settings.seed
            )
            for arm in ARMS
        }
        means = measured.values["student"][measure][index].mean(-1)  # [factors]
        gain = float(means[factors.argmax()] - means[factors.argmin()])
        scores.append(ConceptScore(concept, control, trends, gain))
    return tuple(sorted(scores, key=lambda score: (-score.trends["student"].correlation, score.concept)))


def steering_shares(scores: tuple[ConceptScore, ...]) -> dict[Arm, float]:
    """The share of concepts that steer, in each arm; by chance alone it would be about `LEVEL`."""
    return {arm: float(np.mean([score.steers(arm) for score in scores])) for arm in ARMS}


def control_p_value(scores: tuple[ConceptScore, ...]) -> float | None:
    """Wilcoxon's signed-rank test of the student's scores against the control's, concept by concept, two-sided.

    Our choice: a single concept's text says little, but all of them together say whether turning *this* concept
    matters. `None` for fewer than `MINIMAL_CONCEPTS`, which cannot reach p < 0.05.
    """
    differences = [score.trends["student"].correlation - score.trends["control"].correlation for score in scores]
    if len(differences) < MINIMAL_CONCEPTS:
        return None
    if not any(differences):
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue)


def curve(measured: SteerMeasurements, arm: Arm, measure: str) -> Curve:
    """A measurement against the factor; losses become perplexities."""
    values = measured.values[arm][measure].mean(0)  # [factors, prompts]
    settings = measured.settings
    low, high = bootstrap_interval(values, resamples=settings.resamples, seed=settings.seed)
    found = Curve(values.mean(-1), low, high)
    return Curve(*np.exp(found)) if measure.endswith("_loss") else found
