"""Intervals and p-values equal scipy's and statsmodels' called by hand."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from cocomix.evaluation.statistics import crossed_interval, holm, power_law, t_test, wilcoxon_p


def test_the_t_test_is_scipys_of_pairs() -> None:
    ours, theirs = np.array([4.5, 4.2, 4.4]), np.array([5.0, 5.2, 4.7])
    found = t_test(ours - theirs)
    assert found.p == pytest.approx(scipy.stats.ttest_rel(ours, theirs).pvalue, rel=1e-12)
    assert found.mean == pytest.approx((ours - theirs).mean())
    by_hand = t_test([1.0, 2.0, 3.0])
    assert by_hand.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert by_hand.low == pytest.approx(2.0 - by_hand.half_width)


def test_one_value_and_equal_values_have_no_spread() -> None:
    one = t_test([1.5])
    assert one.mean == 1.5
    assert np.isnan([one.low, one.high, one.p]).all()
    assert t_test([0.0, 0.0]) == (0.0, 0.0, 0.0, 1.0)
    assert math.isnan(t_test([0.5, 0.5]).p)


def test_the_t_interval_holds_the_truth_19_times_in_20() -> None:
    generator = np.random.default_rng(0)
    found = [t_test(generator.normal(3.0, 2.0, size=4)) for _ in range(400)]
    covered = sum(one.low <= 3.0 <= one.high for one in found) / len(found)
    assert 0.92 < covered < 0.98


def world(seeds: int, documents: int = 80, between_seeds: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    targets = np.tile(generator.integers(5, 200, size=documents).astype(float), (seeds, 1))
    means = generator.normal(-0.05, 0.1, size=(seeds, documents)) + generator.normal(0, between_seeds, size=(seeds, 1))
    return targets * means, targets


def test_documents_are_ranked_by_scipys_wilcoxon() -> None:
    gaps, targets = world(3)
    means = (gaps / targets).mean(axis=0)
    assert wilcoxon_p(means) == scipy.stats.wilcoxon(means).pvalue < 0.01
    assert math.isnan(wilcoxon_p(means[:5]))
    assert wilcoxon_p(0 * means) == 1.0


def test_the_bootstrap_of_one_seed_is_scipys_over_documents() -> None:
    gaps, targets = world(1)
    low, high = crossed_interval(gaps, targets)
    theirs = scipy.stats.bootstrap(
        (gaps[0], targets[0]),
        lambda gap, target, axis: gap.sum(axis=axis) / target.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert (low, high) == crossed_interval(gaps, targets)
    mean = gaps.sum() / targets.sum()
    assert low < mean < high


def test_seeds_that_differ_widen_the_interval() -> None:
    narrow, wide = (np.ptp(crossed_interval(*world(3, between_seeds=spread))) for spread in (0.0, 0.2))
    assert wide > 3 * narrow


def test_holm_is_statsmodels() -> None:
    values = [0.01, 0.04, 0.03, 0.2]
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1].tolist())
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    corrected = holm([0.02, float("nan"), 0.02])
    assert corrected[0] == corrected[2] == 0.04
    assert math.isnan(corrected[1])
    assert holm([]) == []


@given(st.floats(0.02, 0.5), st.floats(1.0, 20.0), st.floats(1e3, 1e20))
def test_a_power_law_is_found_again(exponent: float, factor: float, scale: float) -> None:
    costs = scale * np.array([1.0, 3.0, 10.0, 40.0])
    found = power_law(costs, factor * (costs / scale) ** -exponent)
    assert found.exponent == pytest.approx(exponent, rel=1e-3)
    assert found.low <= found.exponent <= found.high


def test_a_power_laws_interval_holds_the_truth() -> None:
    generator = np.random.default_rng(0)
    costs = np.array([1e15, 1e16, 1e17, 1e18, 1e19])
    found = [power_law(costs, 30 * costs**-0.05 * np.exp(generator.normal(0, 0.01, 5))) for _ in range(200)]
    assert 0.88 < np.mean([one.low <= 0.05 <= one.high for one in found]) <= 1.0
