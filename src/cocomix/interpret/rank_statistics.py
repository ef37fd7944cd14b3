"""Does a measurement rise with a factor? Rank correlation, its bootstrap interval and its permutation p-value.

Measurements are [factors, prompts]: every prompt was continued at every factor.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["RankTrend", "bootstrap_interval", "rank_trend", "spearman"]

Floats = NDArray[np.floating[Any]]

_INTERVAL = (2.5, 97.5)  # percentiles


class RankTrend(NamedTuple):
    """How a measurement goes with a factor.

    Attributes:
        correlation: Spearman's, of the factors and the means over prompts; 0 where all means are equal.
        low: lower end of its 95% interval, by bootstrap over prompts.
        high: upper end.
        p_value: one-sided: how often factors dealt out at random within each prompt correlate as strongly, positively.
    """

    correlation: float
    low: float
    high: float
    p_value: float


def spearman(x: Floats, y: Floats) -> Floats:
    """Rank correlation along the last axis; ties share their mean rank, and constants correlate with nothing (0).

    Args:
        x: [n].
        y: [..., n].

    Returns:
        [...].
    """
    ranks_x, ranks_y = (_centred_ranks(values) for values in (x, y))
    norm = np.sqrt((ranks_x**2).sum() * (ranks_y**2).sum(-1))
    correlations: Floats = np.where(norm > 0, (ranks_y * ranks_x).sum(-1) / np.maximum(norm, 1e-300), 0.0)
    return correlations


def rank_trend(
    factors: Floats,  # [factors]
    values: Floats,  # [factors, prompts]
    *,
    resamples: int,
    seed: int,
) -> RankTrend:
    """Rank correlation of a measurement with the factor; see `RankTrend`."""
    generator = np.random.default_rng(seed)
    observed = float(spearman(factors, values.mean(-1)))
    correlations = spearman(factors, _resampled_means(values, resamples, generator))
    low, high = np.percentile(correlations, _INTERVAL)
    shuffled = generator.permuted(np.broadcast_to(values, (resamples, *values.shape)), axis=1)
    chance = spearman(factors, shuffled.mean(-1))
    p_value = (1 + int((chance >= observed - 1e-12).sum())) / (1 + resamples)
    return RankTrend(observed, float(low), float(high), p_value if observed else 1.0)


def bootstrap_interval(values: Floats, *, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """95% interval of the mean over prompts, by bootstrap over prompts: [factors, prompts] to two of [factors]."""
    means = _resampled_means(values, resamples, np.random.default_rng(seed))
    low, high = np.percentile(means, _INTERVAL, axis=0)
    return low, high


def _resampled_means(values: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """Means over prompts drawn with replacement, the same prompts at every factor. [resamples, factors]"""
    prompts = values.shape[-1]
    means: Floats = values[:, generator.integers(prompts, size=(resamples, prompts))].mean(-1).T
    return means


def _centred_ranks(values: Floats) -> Floats:
    """Ranks along the last axis minus their mean: half of (how many are smaller − how many are larger)."""
    smaller = (values[..., :, None] > values[..., None, :]).sum(-1)
    larger = (values[..., :, None] < values[..., None, :]).sum(-1)
    ranks: Floats = (smaller - larger) / 2
    return ranks
