"""Labels, teachers and dictionaries that were mixed up, and inputs that change half-way, are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.artifacts import PLAN, MadeFromSomethingElse, partial_path
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from tests.training.test_resume import Killed, kill_at
from tests.workshop import Workshop


def recipe(workshop: Workshop, model: Path, folder: Path, **changes: Any) -> Any:
    labels = {"kind": "attribution", "teacher": {"model": str(model), "layer": 1}, "dictionary": {"path": str(folder)}}
    return workshop.recipe("cocomix", **{**changes, "labels": {**labels, **changes.get("labels", {})}})


@pytest.fixture
def copies(workshop: Workshop, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Teacher, dictionary and labels that call them by these names."""
    teacher, dictionary = tmp_path / "teacher", tmp_path / "dictionary"
    shutil.copytree(workshop.teacher, teacher)
    shutil.copytree(workshop.dictionary, dictionary)
    labels = Path(shutil.copytree(workshop.labels, tmp_path / "labels"))
    manifest = json.loads((labels / "manifest.json").read_text())
    manifest["labels"]["teacher"]["model"], manifest["labels"]["dictionary"]["path"] = str(teacher), str(dictionary)
    (labels / "manifest.json").write_text(json.dumps(manifest))
    return teacher, dictionary, labels


def change(file: Path) -> None:
    weights = load_file(file)
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] + 1}, file, metadata={"format": "pt"})


def test_a_teacher_or_dictionary_of_the_same_name(
    workshop: Workshop, copies: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, dictionary, labels = copies
    output = tmp_path / "run"
    given = {"labels": {"path": str(labels)}}
    with monkeypatch.context() as patched:
        kill_at(patched, 5)
        with pytest.raises(Killed):  # whole ones are trained on
            train(recipe(workshop, teacher, dictionary, **given), output)
    change(dictionary / "sae_weights.safetensors")  # `cocomix verify` finds it: training reads what `sae` noted
    (dictionary / "manifest.json").unlink()
    with pytest.raises(CoCoMixError, match=r"labels\.dictionary\.path"):
        train(recipe(workshop, teacher, dictionary, **given), output)
    pinned = {"path": str(dictionary), "fingerprint": "0" * 64}
    with pytest.raises(CoCoMixError, match=r"labels\.dictionary\.fingerprint"):
        train(recipe(workshop, teacher, dictionary, labels={"path": str(labels), "dictionary": pinned}), tmp_path / "p")
    change(teacher / "model.safetensors")
    with pytest.raises(CoCoMixError, match=r"labels\.teacher\.model"):
        train(recipe(workshop, teacher, dictionary, **given), output)
    assert (partial_path(output) / PLAN).is_file()


def test_another_configuration_of_the_same_weights_is_told(
    workshop: Workshop, copies: tuple[Path, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An upgrade of transformers or another `pad_token_id` made labels useless, though no number changes."""
    teacher, dictionary, labels = copies
    wanted = recipe(workshop, teacher, dictionary, labels={"path": str(labels)}, tokens=8 * 16)
    train(wanted, tmp_path / "first")
    assert "another configuration" not in caplog.text
    settings = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**settings, "pad_token_id": 3}))
    train(wanted, tmp_path / "second")
    assert f"{teacher} has another configuration" in caplog.text


def test_probabilities_of_a_teacher_of_the_same_name(workshop: Workshop, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(workshop.teacher, tmp_path / "teacher"))
    stored = Path(shutil.copytree(workshop.probabilities, tmp_path / "stored"))
    manifest = json.loads((stored / "manifest.json").read_text())
    manifest["teacher"] = str(teacher)
    (stored / "manifest.json").write_text(json.dumps(manifest))
    change(teacher / "model.safetensors")
    values = {"teacher": {"model": str(teacher), "layer": 1}, "distillation": {"targets": str(stored)}}
    with pytest.raises(CoCoMixError, match=r"stored.*teacher\.model"):
        train(workshop.recipe("ntp", **values), tmp_path / "run")


def test_inputs_that_change_half_way(
    workshop: Workshop, copies: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, dictionary, _ = copies
    online = recipe(workshop, teacher, dictionary, labels={"path": None}, tokens=6 * 8 * 16)
    with monkeypatch.context() as patched:
        kill_at(patched, 5)
        with pytest.raises(Killed):
            train(online, tmp_path / "run")
    weights = load_file(teacher / "model.safetensors")
    last = max(name for name in weights if name.endswith("ln_f.bias"))
    save_file({**weights, last: weights[last] + torch.tensor(0.001)}, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(MadeFromSomethingElse, match=r"online_labels\.weights"):
        train(online, tmp_path / "run")
    shutil.copy(workshop.teacher / "model.safetensors", teacher / "model.safetensors")
    run = train(online, tmp_path / "run")
    assert not (run / PLAN).exists()
