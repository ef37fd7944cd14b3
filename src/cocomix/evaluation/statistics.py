"""What may be said of a few seeds and of many documents; every number is scipy's or statsmodels'."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
Floats = NDArray[np.float64]
_NAN = float("nan")


class Estimate(NamedTuple):
    """A mean, the ends of its 95% interval, and the p-value of its being 0; NaN where there are too few values."""

    mean: float
    low: float = _NAN
    high: float = _NAN
    p: float = _NAN

    @property
    def half_width(self) -> float:
        """Distance from the mean to either end."""
        return self.high - self.mean


def t_test(values: Sequence[float] | Floats) -> Estimate:
    """Mean ± t(0.975, n − 1) · s / √n of independent values, and `scipy.stats.ttest_1samp` against 0.

    Of differences within pairs this is the paired t-test (`ttest_rel`). With two or three values the interval is wide
    because the spread itself is hardly known, as it should be.
    """
    from scipy.stats import ttest_1samp

    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()))
    if not values.std():
        mean = float(values[0])
        return Estimate(mean, mean, mean, 1.0 if mean == 0 else _NAN)
    found = ttest_1samp(values, 0.0)
    interval = found.confidence_interval(0.95)
    return Estimate(float(values.mean()), float(interval.low), float(interval.high), float(found.pvalue))


def crossed_interval(gaps: Floats, targets: Floats, *, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a difference of two models' losses, from resampling documents and seeds.

    Seeds and documents are crossed: every seed is measured on every document. Each resample draws as many of both, with
    replacement (Owen 2007, "The pigeonhole bootstrap"), so that the interval holds the spread over either. Documents,
    not tokens, because losses within a document depend on one another.

    Args:
        gaps: summed differences of next-token losses, nats. [seeds, documents]
        targets: tokens predicted. [seeds, documents]
    """
    seeds, documents = gaps.shape
    generator = np.random.default_rng(seed)
    by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES)
    by_document = generator.multinomial(documents, np.full(documents, 1 / documents), size=_RESAMPLES)
    sums, counts = (((by_seed @ each) * by_document).sum(axis=1) for each in (gaps, targets))
    drawn = counts > 0
    low, high = np.quantile(sums[drawn] / counts[drawn], (0.025, 0.975))
    return float(low), float(high)


def by_document(values: Floats, documents: NDArray[Any]) -> tuple[Floats, Floats]:
    """Sums of the tokens' values [seeds, tokens], and how many, by document [tokens]. [seeds, documents] each"""
    _, places = np.unique(documents, return_inverse=True)
    sums = np.stack([np.bincount(places, weights=row) for row in values]).astype(np.float64)
    return sums, np.broadcast_to(np.bincount(places).astype(np.float64), sums.shape)


def document_interval(values: Floats, documents: NDArray[Any], *, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a mean over tokens, from resampling whole documents (see `crossed_interval`): from the values
    of the tokens and the numbers of their documents. [tokens] each
    """
    return crossed_interval(*by_document(values[None], documents), seed=seed)


def wilcoxon_p(values: Floats) -> float:
    """Two-sided `scipy.stats.wilcoxon` of independent differences; NaN for fewer than 6, which cannot reach 0.05."""
    from scipy.stats import wilcoxon

    if len(values) < 6:
        return _NAN
    return float(wilcoxon(values).pvalue) if values.any() else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """`statsmodels`' Holm correction: p-values that may be read together; NaN stays and does not count."""
    from statsmodels.stats.multitest import multipletests

    values = np.array(p_values, dtype=np.float64)
    known = ~np.isnan(values)
    if known.any():
        values[known] = multipletests(values[known], method="holm")[1]
    return [float(value) for value in values]


class PowerLaw(NamedTuple):
    """loss = factor · cost^(−exponent), with the exponent's 95% interval."""

    factor: float
    exponent: float
    low: float
    high: float


def power_law(costs: Floats, losses: Floats) -> PowerLaw:
    """Fit a power law to final losses by `scipy.optimize.curve_fit`; the interval is t(0.975, n − 2) standard errors.

    There is no irreducible loss in it: with three or four sizes its value would be made up. Costs (tokens, FLOPs or
    seconds) are of at least three runs and not all equal, losses in nats per token.
    """
    from scipy.optimize import curve_fit
    from scipy.stats import linregress, t

    centre = float(np.exp(np.log(costs).mean()))  # so that factor and exponent are of one size
    start = linregress(np.log(costs / centre), np.log(losses))

    def law(cost: Floats, factor: float, exponent: float) -> Floats:
        return factor * (cost / centre) ** -exponent

    (factor, exponent), covariance = curve_fit(law, costs, losses, p0=(np.exp(start.intercept), -start.slope))
    half = float(t.ppf(0.975, len(costs) - 2) * np.sqrt(covariance[1, 1]))
    return PowerLaw(float(factor * centre**exponent), float(exponent), float(exponent - half), float(exponent + half))
