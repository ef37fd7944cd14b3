import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocomix.evaluation.statistics import holm, paired_test, t_interval


def test_t_interval_by_hand():
    found = t_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found.low == pytest.approx(2.0 - found.half_width)
    assert t_interval([1.0]) is None


def test_the_t_interval_holds_the_truth_19_times_in_20():
    generator = np.random.default_rng(0)
    found = [t_interval(generator.normal(3.0, 2.0, size=4).tolist()) for _ in range(800)]
    covered = sum(interval.low <= 3.0 <= interval.high for interval in found) / len(found)
    assert 0.925 < covered < 0.975


def test_paired_test_weighs_tokens_and_finds_a_shift():
    generator = np.random.default_rng(1)
    targets = generator.integers(5, 200, size=80).astype(float)
    baseline = targets * generator.normal(5.0, 0.5, size=80)
    losses = baseline + targets * generator.normal(-0.05, 0.1, size=80)
    found = paired_test(losses, baseline, targets)
    assert found.difference == pytest.approx((losses.sum() - baseline.sum()) / targets.sum())
    assert found.low < found.difference < found.high < 0
    assert found.p_value < 0.01
    assert found.better > 0.5
    assert found == paired_test(losses, baseline, targets)
    mirrored = paired_test(baseline, losses, targets)
    assert mirrored.difference == pytest.approx(-found.difference)
    assert mirrored.p_value == pytest.approx(found.p_value)


def test_equal_models_are_not_told_apart():
    targets = np.full(10, 7.0)
    found = paired_test(targets * 4, targets * 4, targets)
    assert (found.difference, found.low, found.high, found.p_value, found.better) == (0.0, 0.0, 0.0, 1.0, 0.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_never_lowers(values):
    adjusted = holm(values)
    assert all(0 <= before <= after <= 1 for before, after in zip(values, adjusted, strict=True))
    ranked = sorted(range(len(values)), key=lambda index: values[index])
    assert all(adjusted[a] <= adjusted[b] for a, b in pairwise(ranked))
