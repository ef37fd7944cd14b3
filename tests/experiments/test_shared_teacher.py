"""The teacher of a plan: loaded once, read once where labels and probabilities allow, gone before students train."""

import weakref
from pathlib import Path
from typing import Any

import pytest

from cocomix.concepts import ActivationConfig, teacher
from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.evaluation.teacher_flops import teacher_flops
from cocomix.experiments import load_plan, run_sweep, runner
from cocomix.experiments.sweep_plan import label_folder
from cocomix.labelling import Labels, TeacherProbabilities
from tests.workshop import BLOCK, CONCEPTS, Workshop

from .test_sweep import write_plan

ARMS = {
    "ntp": "ntp.yaml",
    "distilled": {"base": "ntp.yaml", "distillation": {"targets": "probabilities", "weight": 1.0}},
    "mixed": "cocomix.yaml",
    "active": {"base": "cocomix.yaml", "labels": {"kind": "activation"}},
    "both": {
        "base": "cocomix.yaml",
        "labels": {"kind": "activation"},
        "distillation": {"targets": "probabilities", "weight": 1.0},
    },
}
DICTIONARY = {"num_concepts": CONCEPTS, "k": 8, "tokens": 2048, "batch_size": 256, "force": True}


def test_it_is_loaded_and_read_once_and_released(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    original, original_tokenizer, train = teacher.load_teacher, teacher.load_tokenizer, runner.train
    monkeypatch.setattr(teacher, "load_teacher", load)
    monkeypatch.setattr("cocomix.training.input_checks.load_teacher", load)
    monkeypatch.setattr(teacher, "load_tokenizer", tokenizer)
    monkeypatch.setattr(runner, "train", trained)
    result = run_sweep(load_plan(plan, tmp_path / "out"))
    assert not result.missing
    assert len(loaded) == 1  # checks of the runs' inputs know the teacher by its files
    assert tokenizers == [str(workshop.teacher)]

    runs = {job.arm: Run.open(job.folder) for job in result.jobs}
    spent = {arm: teacher_flops(run) or 0.0 for arm, run in runs.items()}
    shared = Labels.open(label_folder(tmp_path / "out", ActivationConfig())).manifest.shared_pass
    assert shared == TeacherProbabilities.open(tmp_path / "out" / "probabilities").manifest.shared_pass
    assert shared is not None
    assert Labels.open(tmp_path / "out" / "labels" / "default").manifest.shared_pass is None
    read = min(runs["both"].manifest.tokens, Tokens.open(workshop.data).manifest.splits["train"].blocks * BLOCK)
    assert spent["both"] == pytest.approx(spent["active"] + spent["distilled"] - shared.flops_per_token * read)
    assert 0 == spent["ntp"] < spent["active"] < spent["distilled"] < spent["both"]
