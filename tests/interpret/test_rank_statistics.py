import numpy as np
import pytest

from cocomix.interpret.rank_statistics import bootstrap_interval, rank_trend, spearman

FACTORS = np.array([-2.0, -1.0, 0.0, 1.0, 5.0])


def naive_spearman(x, y):
    """Pearson's correlation of mean ranks, one value at a time."""

    def ranks(values):
        return [np.mean([place for place, v in enumerate(sorted(values)) if v == value]) for value in values]

    return np.corrcoef(ranks(x), ranks(y))[0, 1]


def test_spearman_equals_the_naive_form_with_ties():
    draws = np.random.default_rng(0).integers(0, 4, (20, 5)).astype(float)
    draws = draws[draws.std(-1) > 0]
    expected = [naive_spearman(FACTORS, row) for row in draws]
    assert spearman(FACTORS, draws) == pytest.approx(expected)


def test_spearman_of_order_and_constants():
    rows = np.array([[1.0, 2.0, 3.0, 4.0, 50.0], [5.0, 4.0, 3.0, 2.0, 1.0], [7.0] * 5])
    assert spearman(FACTORS, rows).tolist() == pytest.approx([1.0, -1.0, 0.0])


def test_a_rising_measurement_is_found_and_noise_is_not():
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(5, 12))
    rising = rank_trend(FACTORS, noise + FACTORS[:, None], resamples=500, seed=0)
    assert rising.correlation == pytest.approx(1.0)
    assert rising.low > 0.5
    assert rising.p_value < 0.02
    assert rank_trend(FACTORS, noise - FACTORS[:, None], resamples=500, seed=0).p_value > 0.9
    constant = rank_trend(FACTORS, np.zeros((5, 12)), resamples=500, seed=0)
    assert (constant.correlation, constant.low, constant.high, constant.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_p_values_of_noise_are_about_uniform():
    """Prompts differ much more than factors do: dealing factors out within prompts must take no notice of that."""
    generator = np.random.default_rng(1)
    prompts = 10 * generator.normal(size=(1, 6))
    values = [
        rank_trend(FACTORS, prompts + generator.normal(size=(5, 6)), resamples=200, seed=0).p_value for _ in range(200)
    ]
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.10
    assert 0.4 <= np.mean(values) <= 0.6


def test_the_bootstrap_interval_holds_the_mean_and_narrows_with_prompts():
    generator = np.random.default_rng(0)
    widths = []
    for prompts in (8, 200):
        values = generator.normal(size=(5, prompts))
        low, high = bootstrap_interval(values, resamples=400, seed=0)
        assert (low <= values.mean(-1)).all()
        assert (values.mean(-1) <= high).all()
        widths.append((high - low).mean())
    assert widths[1] == pytest.approx(2 * 1.96 / 200**0.5, rel=0.15)
    assert widths[1] < widths[0] / 3
