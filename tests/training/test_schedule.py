"""Weights of loss terms over a run."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from cocomix.training.objectives import Schedule

READ = TypeAdapter(Schedule).validate_python
SHAPES: list[Any] = [
    0.1,
    0,
    {"value": 0.2},
    {"shape": "linear", "until": 0.25},
    {"shape": "linear"},
    {"shape": "stop", "value": 0.3, "until": 0.1},
    {"stages": {0: 0.1, 0.5: 0.05, 0.75: 0}},
    {"stages": {0: 0, 0.5: 0.2}},
]


@pytest.mark.parametrize(
    ("given_as", "weights"),
    [
        (0.1, [0.1] * 8),
        ("1e-1", [0.1] * 8),  # as YAML 1.1 reads it
        ({"shape": "linear", "until": 0.5}, [0.1, 0.075, 0.05, 0.025, 0, 0, 0, 0]),
        ({"shape": "linear", "value": 0.8}, [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"shape": "stop", "value": 0.3, "until": 0.3}, [0.3, 0.3, 0.3, 0, 0, 0, 0, 0]),
        ({"stages": {0: 0.1, 0.5: 0.05, 0.75: 0}}, [0.1] * 4 + [0.05] * 2 + [0, 0]),
        ({"stages": {0: 0, 0.5: 0.2}}, [0] * 4 + [0.2] * 4),
    ],
)
def test_the_weight_of_every_step(given_as: Any, weights: list[float]) -> None:
    schedule = READ(given_as)
    assert [schedule.weight(step, 8) for step in range(8)] == pytest.approx(weights)
    assert schedule.peak == max(weights)


@given(shape=st.sampled_from(SHAPES), total=st.integers(1, 500))
def test_the_step_from_which_it_is_zero_for_good(shape: Any, total: int) -> None:
    schedule = READ(shape)
    weights = [schedule.weight(step, total) for step in range(total)]
    last = max((step for step, weight in enumerate(weights) if weight > 0), default=-1)
    assert schedule.steps(total) == last + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_written_as_it_is_read(shape: Any) -> None:
    schedule = READ(shape)
    written = schedule.model_dump(mode="json")
    assert READ(written) == schedule
    assert isinstance(written, float) == (not schedule.changes)


def test_a_tenth_of_thirty_steps_is_three() -> None:
    assert READ({"shape": "stop", "until": 0.1}).steps(30) == 3
    assert READ({"shape": "stop", "until": 0.7}).steps(10) == 7


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (-0.1, "value"),
        (float("nan"), "value"),
        ("much", "value"),
        ({"shape": "cosine"}, "shape"),
        ({"shape": "linear", "until": 0}, "until"),
        ({"shape": "linear", "until": 1.5}, "until"),
        ({"shape": "constant", "until": 0.5}, "until"),
        ({"shape": "stages"}, "stages"),
        ({"stages": {0.5: 0.1}}, "stages"),
        ({"stages": {0: 0.1, 1: 0}}, "stages"),
        ({"stages": {0: -1.0}}, "stages"),
        ({"stages": {0: 0.1}, "value": 0.2}, "value"),
        ({"weight": 0.1}, "weight"),
    ],
)
def test_what_is_no_schedule_is_refused(wrong: Any, field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        READ(wrong)
