"""What may be said of a few seeds and of many documents: intervals and a paired test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MINIMAL_DOCUMENTS", "Interval", "PairedTest", "holm", "paired_test", "t_interval"]

MINIMAL_DOCUMENTS = 6
"""Fewer documents cannot reach p < 0.05 in a two-sided signed-rank test."""

_RESAMPLES = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% interval.

    Attributes:
        mean: of the values.
        low: lower end.
        high: upper end.
        count: number of values.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Distance from the mean to either end."""
        return self.high - self.mean


def t_interval(values: Sequence[float]) -> Interval | None:
    """Mean ± t(0.975, n − 1) · s / √n of independent values; `None` for fewer than two.

    With two or three seeds the interval is wide because the spread itself is hardly known, as it should be.
    """
    count = len(values)
    if count < 2:
        return None
    from scipy.stats import t

    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same documents; below 0 = the first is better.

    Attributes:
        difference: of their losses over all documents, nats per token.
        low: lower end of its 95% interval, from resampling documents.
        high: upper end.
        p_value: two-sided Wilcoxon signed-rank test of the documents' mean losses.
        adjusted_p_value: the same after Holm's correction for the number of arms compared.
        better: share of documents on which the first model's mean loss is lower.
        documents: how many.
    """

    difference: float
    low: float
    high: float
    p_value: float
    adjusted_p_value: float
    better: float
    documents: int


def paired_test(losses: Floats, baseline: Floats, targets: Floats, *, seed: int = 0) -> PairedTest:
    """Compare two models document by document.

    Documents, not tokens, are resampled and ranked: losses within a document depend on one another.

    Args:
        losses: summed next-token losses of each document, nats. [documents]
        baseline: the baseline's. [documents]
        targets: tokens predicted in each document, above 0. [documents]
        seed: of the resampling.

    Returns:
        The test, `adjusted_p_value` equal to `p_value`; see `holm`.
    """
    from scipy.stats import wilcoxon

    assert len(losses) == len(baseline) == len(targets) >= MINIMAL_DOCUMENTS
    gap = losses - baseline
    means = gap / targets
    generator = np.random.default_rng(seed)
    resampled = np.empty(_RESAMPLES)
    for index in range(_RESAMPLES):
        drawn = generator.integers(len(gap), size=len(gap))
        resampled[index] = gap[drawn].sum() / targets[drawn].sum()
    low, high = np.quantile(resampled, (0.025, 0.975))
    p_value = 1.0 if not means.any() else float(wilcoxon(means).pvalue)
    return PairedTest(
        difference=float(gap.sum() / targets.sum()),
        low=float(low),
        high=float(high),
        p_value=p_value,
        adjusted_p_value=p_value,
        better=float((means < 0).mean()),
        documents=len(gap),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that may be read together, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
