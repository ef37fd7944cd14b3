"""A few cases of every target."""

from pathlib import Path

import pytest

from tests.fuzz.__main__ import TARGETS
from tests.fuzz.cases import Target, run_target
from tests.workshop import Workshop


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_cases_end_in_a_result_or_a_sentence(target: Target, workshop: Workshop, tmp_path: Path) -> None:
    outcome = run_target(target, workshop, tmp_path / "scratch", cases=8 * target.share, seed=1)
    assert outcome.failure is None, outcome.failure
    assert outcome.cases >= 8


def test_a_failure_is_reported(workshop: Workshop, tmp_path: Path) -> None:
    def case(world: object, draw: object) -> None:
        raise KeyError("spoilt")

    outcome = run_target(Target("broken", case, 1), workshop, tmp_path / "scratch", cases=5, seed=0)
    assert outcome.failure is not None
    assert "KeyError" in outcome.failure
