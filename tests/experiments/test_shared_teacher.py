"""The teacher of a plan: loaded once for all shared parts, and gone before students are trained."""

import weakref
from pathlib import Path
from typing import Any

import pytest

from cocomix.concepts import loaded_teachers
from cocomix.experiments import load_plan, run_sweep, runner
from tests.workshop import CONCEPTS, Workshop

from .test_sweep import write_plan

ARMS = {
    "ntp": "ntp.yaml",
    "distilled": {"base": "ntp.yaml", "distillation": {"targets": "probabilities", "weight": 1.0}},
    "mixed": "cocomix.yaml",
    "active": {"base": "cocomix.yaml", "labels": {"kind": "activation"}},
}
DICTIONARY = {"num_concepts": CONCEPTS, "k": 8, "tokens": 2048, "batch_size": 256, "force": True}


def test_it_is_loaded_once_and_released(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    tokenizers: list[str] = []

    def load(*arguments: Any, **options: Any) -> Any:
        model = original(*arguments, **options)
        loaded.append(weakref.ref(model))
        return model

    def tokenizer(name: str, revision: str | None = None) -> Any:
        tokenizers.append(name)
        return original_tokenizer(name, revision)

    def trained(*arguments: Any) -> Any:
        assert [model() for model in loaded] == [None]
        return train(*arguments)

    plan = write_plan(tmp_path / "plans", workshop, arms=ARMS, seeds=[0], dictionary=DICTIONARY)
    original, original_tokenizer, train = loaded_teachers.load_teacher, loaded_teachers.load_tokenizer, runner.train
    monkeypatch.setattr(loaded_teachers, "load_teacher", load)
    monkeypatch.setattr("cocomix.training.input_checks.load_teacher", load)
    monkeypatch.setattr(loaded_teachers, "load_tokenizer", tokenizer)
    monkeypatch.setattr(runner, "train", trained)
    assert not run_sweep(load_plan(plan, tmp_path / "out")).missing
    assert len(loaded) == 1  # checks of the runs' inputs know the teacher by its files
    assert tokenizers == [str(workshop.teacher)]
