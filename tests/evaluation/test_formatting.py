import pytest

from cocomix.evaluation.pages import duration, percent, si, signed


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00"), (7, "7.00"), (999.4, "999"), (999.6, "1.00 k"), (1000, "1.00 k"), (3_012_345, "3.01 M"),
     (99_960_000, "100 M"), (167e6, "167 M"), (20e9, "20.0 G"), (1.5e18, "1.50 E")],
)  # fmt: skip
def test_si(value, text):
    assert si(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (42, "42 s"),
        (59.7, "1 min 00 s"),
        (374, "6 min 14 s"),
        (3599.6, "1 h 00 min"),
        (11100, "3 h 05 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_signed_and_percent_use_a_true_minus():
    assert signed(-0.2981) == "\u22120.298"
    assert signed(0.01) == "+0.010"
    assert percent(0.215) == "21.5%"
    assert percent(-0.05) == "\u22125.0%"
