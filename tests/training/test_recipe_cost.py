"""What a recipe will cost: measured steps, and room on the disk."""

from pathlib import Path

import pytest

from cocomix.training import estimate, recipe_cost
from cocomix.training.recipe_cost import StepSpeed
from tests.workshop import CONCEPTS, Workshop


def test_steps_of_the_student_are_timed_and_nothing_is_kept(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = workshop.recipe("cocomix", training={"optim": "muon"})
    found = estimate(recipe, seconds=0.3)
    assert found["tokens per second on this machine"] > 0
    assert found["hours on this machine"] == pytest.approx(
        found["tokens"] / found["tokens per second on this machine"] / 3600, rel=0.05
    )
    assert list(tmp_path.iterdir()) == []


def test_neither_data_nor_labels_are_needed(workshop: Workshop, tmp_path: Path) -> None:
    backbone = {"vocab_size": 300, "n_positions": 16}
    changes = {"data": str(tmp_path / "data"), "labels": {"path": str(tmp_path / "labels"), "kind": "random", "k": 2}}
    recipe = workshop.recipe("cocomix", **changes, model={"backbone": backbone, "num_concepts": CONCEPTS})
    found = estimate(recipe, seconds=0)
    assert not any("this machine" in name for name in found)
    assert found["GB of labels"] == pytest.approx(found["tokens"] * (2 * 4 + 1) / 1e9, rel=0.05)
    assert found["GB of checkpoints, at most"] == pytest.approx(3 * 12 * found["parameters"] / 1e9, rel=0.05)


def test_a_model_that_does_not_fit_is_not_tried(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_cost, "available_memory", lambda device: 1000)
    assert "not measured" in estimate(workshop.recipe("ntp"), seconds=1)["hours on this machine"]
    monkeypatch.undo()
    monkeypatch.setattr(recipe_cost, "products_per_second", lambda threads: 1e-3)
    assert "not measured" in estimate(workshop.recipe("ntp"), seconds=1)["hours on this machine"]


def test_a_step_is_its_micro_batches_and_one_update() -> None:
    assert StepSpeed(steps=3, blocks=2, seconds_per_block=0.5, seconds_per_update=0.1).seconds(8) == pytest.approx(4.1)
