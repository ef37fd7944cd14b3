"""A run that was stopped, anywhere, ends as if it had not been."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cocomix.training.run
from cocomix.artifacts import (
    MANIFEST,
    AlreadyExists,
    BeingWritten,
    MadeFromSomethingElse,
    file_sha256,
    partial_path,
)
from cocomix.runtime.stopping import Terminated
from cocomix.training import train
from cocomix.training.callbacks import MetricsFile, keep_metrics_until
from cocomix.training.checkpoints import last_complete_checkpoint
from cocomix.training.trainer import CoCoMixTrainer
from tests.workshop import TOY_BACKBONE, Workshop

DROPOUT = {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}
# Two passes over 289 blocks in steps of 32: the run crosses the end of an epoch and its ragged last batch.
LONG = {"tokens": None, "training": {"max_steps": 14, "gradient_accumulation_steps": 4, "save_steps": 4}}
TIMES = ("seconds", "tokens_per_second")


class Killed(Exception):
    pass


def recipe(workshop: Workshop, objective: str = "cocomix", **changes: Any) -> Any:
    settings = {"name": "run", "model": {"backbone": {**TOY_BACKBONE, **DROPOUT}}, **LONG}
    return workshop.recipe(objective, **{**settings, **changes})


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int, event: str = "on_step_end") -> None:
    def raise_at_step(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise Killed

    monkeypatch.setattr(MetricsFile, event, raise_at_step, raising=False)


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def assert_same_run(first: Path, second: Path) -> None:
    assert file_sha256(first / "model.safetensors") == file_sha256(second / "model.safetensors")
    assert rows(first) == rows(second)
    manifests = [json.loads((run / "manifest.json").read_text()) for run in (first, second)]
    for manifest in manifests:
        assert manifest.pop("seconds") > 0
    assert manifests[0] == manifests[1]


@pytest.fixture(scope="module")
def whole(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: train(recipe(workshop, name), folder / name) for name in ("ntp", "cocomix")}


@pytest.mark.parametrize("objective", ["ntp", "cocomix"])
def test_killed_between_log_lines(
    workshop: Workshop, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    # Checkpoint 8 lies between the log lines of steps 6 and 9; step 10 is in the second epoch.
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        kill_at(patched, 11)
        with pytest.raises(Killed):
            train(recipe(workshop, objective), output)
    assert not output.exists()
    assert last_complete_checkpoint(partial_path(output) / "checkpoints").name == "checkpoint-8"  # type: ignore[union-attr]
    train(recipe(workshop, objective), output)
    assert not partial_path(output).exists()
    assert_same_run(output, whole[objective])


def test_killed_twice_and_before_the_first_checkpoint(
    workshop: Workshop, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    for step in (2, 7, 13):
        with monkeypatch.context() as patched:
            kill_at(patched, step)
            with pytest.raises(Killed):
                train(recipe(workshop), output)
    train(recipe(workshop), output)
    assert_same_run(output, whole["cocomix"])


def test_one_process_alone_reads_the_checkpoint(
    workshop: Workshop, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are told by it which one is whole, rather than to hash all of it, and to remove torn ones, as well."""
    output, told = tmp_path / "run", []
    with monkeypatch.context() as patched:
        kill_at(patched, 5)
        with pytest.raises(Killed):
            train(recipe(workshop), output)

    def of_the_first(found: list[Any]) -> list[Any]:
        told.append(found[0])
        return [partial_path(output) / "checkpoints" / "checkpoint-4"]

    monkeypatch.setattr(cocomix.training.run, "broadcast_object_list", of_the_first)
    monkeypatch.setattr(cocomix.training.run, "last_complete_checkpoint", lambda folder: "hashed")
    train(recipe(workshop), output)
    assert told == ["hashed"]
    assert_same_run(output, whole["cocomix"])
    trainer = SimpleNamespace(args=SimpleNamespace(process_index=1), is_fsdp_enabled=False)
    cocomix.training.run._resume_point(trainer, partial_path(output))  # type: ignore[arg-type]
    assert told == ["hashed", None]


@pytest.mark.parametrize("stage", ["_final_evaluation", "_save", "run_manifest"])
def test_killed_after_the_last_step(
    workshop: Workshop, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(cocomix.training.run, stage, killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(workshop), output)
    train(recipe(workshop), output)
    assert_same_run(output, whole["cocomix"])


def test_a_signal_in_the_last_step_ends_what_comes_after_it(
    workshop: Workshop, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(callback: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            os.kill(os.getpid(), signal.SIGTERM)

    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(cocomix.training.run.SaveAndStop, "on_step_end", signalled)
        with pytest.raises(Terminated):
            train(recipe(workshop), output)
    assert_same_run(output, whole["cocomix"])


def test_killed_while_a_checkpoint_is_written(
    workshop: Workshop, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(self: Any, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        original(self, model, trial)
        if self.state.global_step == 8:
            (folder / MANIFEST).unlink()
            (folder / "optimizer.pt").write_bytes(b"torn")
            raise Killed

    output = tmp_path / "run"
    original = CoCoMixTrainer._save_checkpoint
    with monkeypatch.context() as patched:
        patched.setattr(CoCoMixTrainer, "_save_checkpoint", torn)
        with pytest.raises(Killed):
            train(recipe(workshop), output)
    checkpoints = partial_path(output) / "checkpoints"
    assert (checkpoints / "checkpoint-8").is_dir()
    assert last_complete_checkpoint(checkpoints).name == "checkpoint-4"  # type: ignore[union-attr]
    assert not (checkpoints / "checkpoint-8").exists()
    train(recipe(workshop), output)
    assert_same_run(output, whole["cocomix"])


def test_no_checkpoint_at_all() -> None:
    assert last_complete_checkpoint(Path("nowhere")) is None


def test_an_unfinished_run_of_another_recipe_is_refused(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        kill_at(patched, 2)
        with pytest.raises(Killed):
            train(recipe(workshop), output)
    before = sorted(partial_path(output).rglob("*"))
    with pytest.raises(MadeFromSomethingElse) as refused:
        train(recipe(workshop, training={"max_steps": 15}), output)
    assert refused.value.keys == ("recipe.training.max_steps",)
    assert sorted(partial_path(output).rglob("*")) == before
    shutil.rmtree(partial_path(output))
    train(recipe(workshop, tokens=128, training={}), output)


def test_a_folder_that_is_in_the_way_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(AlreadyExists):
        train(recipe(workshop), tmp_path / "run")
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "run.partial").exists()


def test_a_second_command_does_not_write_into_a_run(
    workshop: Workshop, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, refused = tmp_path / "run", []

    def again(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            with pytest.raises(BeingWritten) as caught:
                train(recipe(workshop), output)
            refused.append(caught.value.pid)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "on_step_begin", again, raising=False)
        train(recipe(workshop), output)
    assert refused == [os.getpid()]
    assert_same_run(output, whole["cocomix"])


def test_a_finished_run_is_not_trained_again(workshop: Workshop, tmp_path: Path) -> None:
    short = recipe(workshop, "ntp", training={"max_steps": 2})
    output = train(short, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert train(short, output) == output
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    with pytest.raises(AlreadyExists) as refused:
        train(recipe(workshop, "ntp", training={"max_steps": 3}), output)
    assert refused.value.keys == ("recipe.training.max_steps",)


def test_seconds_go_on_counting(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        kill_at(patched, 6)
        with pytest.raises(Killed):
            train(recipe(workshop), output)
    train(recipe(workshop), output)
    seconds = [json.loads(line)["seconds"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    keep_metrics_until(path, 4)
    assert not path.exists()
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"step": 7, "lo')
    keep_metrics_until(path, 4)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'
