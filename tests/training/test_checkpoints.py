"""Checkpoints are whole or not used; SIGTERM, clock jumps, non-finite gradients."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerState

from cocomix.artifacts import MANIFEST, file_sha256, partial_path, read_json
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.stopping import Terminated
from cocomix.training import train
from cocomix.training.callbacks import MetricsFile
from cocomix.training.checkpoints import (
    WRITING,
    Checkpoint,
    CheckpointManifest,
    last_complete_checkpoint,
    publish,
)
from cocomix.training.trainer import CoCoMixTrainer
from tests.command_line import Cli
from tests.training.test_resume import Killed, assert_same_run, kill_at, recipe
from tests.training.test_trainer import build, spoil, trainer
from tests.workshop import Workshop


@pytest.fixture(scope="module")
def whole(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(workshop), tmp_path_factory.mktemp("whole") / "run")


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "deep").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(os.urandom(64))
    (path / "deep" / "rng_state.pth").write_bytes(os.urandom(64))
    Checkpoint.seal(path, CheckpointManifest(seconds=1.0))
    return path


@pytest.mark.parametrize("name", ["model.safetensors", "deep/rng_state.pth"])
@pytest.mark.parametrize("how", ["flipped", "short", "gone"])
def test_a_torn_checkpoint_is_found_by_its_hashes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    checkpoint(tmp_path, 4)
    torn = checkpoint(tmp_path, 8)
    assert last_complete_checkpoint(tmp_path) == torn
    content = bytearray((torn / name).read_bytes())
    content[20] ^= 1
    if how == "gone":
        (torn / name).unlink()
    else:
        (torn / name).write_bytes(content if how == "flipped" else content[:-1])
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert len(caplog.messages) == 1
    assert name in caplog.text
    assert "checkpoint-8" in caplog.text
    assert not torn.exists()


@pytest.mark.parametrize("text", ["", "[1]"])
def test_a_damaged_manifest(tmp_path: Path, text: str) -> None:
    path = checkpoint(tmp_path, 4)
    Checkpoint.require_whole(path)
    (path / MANIFEST).write_text(text)
    assert last_complete_checkpoint(tmp_path) is None


def test_the_last_ones_are_kept_by_step_whatever_the_clock_said(tmp_path: Path) -> None:
    for step, modified in ((2, 900), (10, 100), (4, 800)):
        path = checkpoint(tmp_path, step)
        os.utime(path, (modified, modified))
    state = TrainerState(global_step=100, best_model_checkpoint=str(tmp_path / "checkpoint-2"))
    for keep, left in ((None, 4), (0, 4), (2, 3)):
        checkpoint(tmp_path / WRITING, 100)
        publish(tmp_path, CheckpointManifest(seconds=1.0), state, keep)
        assert len(list(tmp_path.iterdir())) == left
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-10", "checkpoint-100"}


def test_what_a_run_keeps(tmp_path: Path) -> None:
    """Two checkpoints, sealed, without a pickled `training_args.bin`, under a clock that runs backwards."""
    made, _ = trainer(build("cocomix"), tmp_path, steps=6, save_strategy="steps", save_steps=2, save_total_limit=2)
    save = CoCoMixTrainer._save_checkpoint

    def saved(model: Any, trial: Any) -> None:
        save(made, model, trial)
        newest = tmp_path / f"checkpoint-{made.state.global_step}"
        os.utime(newest, (1000 - made.state.global_step,) * 2)

    made._save_checkpoint = saved
    made.train()
    assert {path.name for path in tmp_path.glob("*")} == {"checkpoint-4", "checkpoint-6"}
    for path in tmp_path.iterdir():
        Checkpoint.require_whole(path)
        kept = {file.name for file in path.rglob("*")}
        assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt"} <= kept
        assert "training_args.bin" not in kept
        assert kept - {MANIFEST} == read_json(path / MANIFEST)["files"].keys()


def test_the_best_checkpoint_is_kept_and_found(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": 1}
    made, _ = trainer(build("ntp"), tmp_path, steps=4, learning_rate=3.0, optim="sgd", **settings, **best)
    made.train()
    found = Path(made.state.best_model_checkpoint)
    assert found.parent == tmp_path
    assert found.is_dir()
    Checkpoint.require_whole(found)
    losses = {row["step"]: row["eval_loss"] for row in made.state.log_history if "eval_loss" in row}
    assert found.name == f"checkpoint-{min(losses, key=lambda step: losses[step])}"


def test_a_torn_checkpoint_costs_no_more_than_its_steps(
    workshop: Workshop, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        kill_at(patched, 11)
        with pytest.raises(Killed):
            train(recipe(workshop), output)
    checkpoints = partial_path(output) / "checkpoints"
    weights = checkpoints / "checkpoint-8" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    (checkpoints / WRITING / "checkpoint-12").mkdir(parents=True)
    train(recipe(workshop), output)
    assert any("model.safetensors" in message for message in caplog.messages)
    assert_same_run(output, whole)


@pytest.mark.parametrize(
    ("step", "number", "error"),
    [(1, signal.SIGTERM, Terminated), (8, signal.SIGTERM, Terminated), (8, signal.SIGINT, KeyboardInterrupt)],
)
def test_sigterm_and_ctrl_c_save_and_end(
    workshop: Workshop,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    number: signal.Signals,
    error: type[BaseException],
) -> None:
    output = tmp_path / "run"

    def terminate(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            signal.raise_signal(number)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "on_step_begin", terminate, raising=False)
        with pytest.raises(error) as caught:
            train(recipe(workshop), output)
    assert caught.value.__notes__ == [f"the checkpoint of step {step + 1} is kept"]
    found = last_complete_checkpoint(partial_path(output) / "checkpoints")
    assert found is not None
    assert found.name == f"checkpoint-{step + 1}"
    train(recipe(workshop), output)
    assert_same_run(output, whole)


def test_sigterm_on_the_command_line(cli: Cli, workshop: Workshop, tmp_path: Path, monkeypatch: Any) -> None:
    path = workshop.recipe_file(tmp_path / "r.yaml", "ntp")
    before = signal.getsignal(signal.SIGTERM)

    def terminate(self: Any, *arguments: Any, **kwargs: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "on_step_begin", terminate, raising=False)
        result = cli("train", path, "-o", tmp_path / "run", status=143)
    assert "checkpoint of step 1 is kept" in result.err
    with monkeypatch.context() as patched:
        patched.setattr("cocomix.data.units.UnitLog.append", terminate)
        result = cli("prepare", workshop.corpus, "--vocab-size", 290, "-o", tmp_path / "data", status=143)
    assert "stopped by SIGTERM" in result.err
    assert {path.name for path in tmp_path.iterdir()} == {"r.yaml", "run.partial", "data.partial"}
    assert signal.getsignal(signal.SIGTERM) is before


def spoil_gradients(made: CoCoMixTrainer, steps: set[int], value: float) -> None:
    """Make the loss, and with it every gradient, `value` at some steps."""
    spoil(made, steps, lambda loss: loss * value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_skipped_step_changes_nothing(tmp_path: Path, value: float, clip: float) -> None:
    """Its weights stay, its loss is in no average, and training goes on with the next batch."""
    settings = {"logging_steps": 4, "max_grad_norm": clip, "weight_decay": 0.1, "save_strategy": "steps"}
    made, logs = trainer(build("ntp"), tmp_path, steps=4, save_steps=1, save_total_limit=9, **settings)
    made.skips_non_finite = True
    spoil_gradients(made, {2}, value)
    made.train()
    weights = [file_sha256(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2, 3, 4)]
    assert weights[1] == weights[2]
    assert len(set(weights)) == 3
    assert made.skipped_steps == 1
    twin, one_by_one = trainer(build("ntp"), tmp_path / "twin", steps=2, **{**settings, "logging_steps": 1})
    twin.train()
    assert logs.rows[0]["ntp_loss"] == pytest.approx(one_by_one.rows[0]["ntp_loss"], rel=0.2)
    assert read_json(tmp_path / "checkpoint-4" / MANIFEST)["skipped"] == [1, 0]


def test_steps_that_are_all_skipped_stop_training(tmp_path: Path) -> None:
    made, logs = trainer(build("ntp"), tmp_path, steps=20, logging_steps=3)
    made.skips_non_finite = True
    spoil_gradients(made, set(range(2, 20)), float("nan"))
    with pytest.raises(CoCoMixError, match="10 steps in a row"):
        made.train()
    assert all("ntp_loss" not in row for row in logs.rows[1:])


def test_the_recipe_says_what_to_do_about_them(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CoCoMixTrainer.compute_loss

    def compute_loss(self: Any, *arguments: Any, **kwargs: Any) -> Any:
        loss = original(self, *arguments, **kwargs)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(CoCoMixTrainer, "compute_loss", compute_loss)
    with pytest.raises(CoCoMixError, match="training stopped"):
        train(workshop.recipe("ntp"), tmp_path / "stopped")
    run = train(workshop.recipe("ntp", non_finite="skip"), tmp_path / "run")
    assert read_json(run / "manifest.json")["skipped_steps"] == 1
    assert math.isfinite(read_json(run / "manifest.json")["final"]["eval_loss"])
