"""`cocomix runs`: every state a run can be in, from what lies in its folder."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from cocomix.artifacts import MANIFEST, read_json, write_json
from cocomix.evaluation.listing import list_runs
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.liveness import SIGN, signed_in
from tests.command_line import Cli
from tests.workshop import Workshop


def begun(workshop: Workshop, folder: Path, *, steps: int = 9, checkpoint: int | None = 6) -> Path:
    """A run in the middle: two evaluations, one checkpoint, and a line that was being written."""
    folder.mkdir(parents=True)
    shutil.copyfile(workshop.cocomix_run / "recipe.yaml", folder / "recipe.yaml")
    rows = [{"step": step, "tokens": 100 * step, "ntp_loss": 5.0} for step in range(3, steps + 1, 3)]
    rows.insert(1, {"step": 3, "tokens": 300, "eval_loss": 6.0})
    rows.insert(3, {"step": 6, "tokens": 600, "eval_loss": 5.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1')
    if checkpoint is not None:
        (folder / "checkpoints" / f"checkpoint-{checkpoint}").mkdir(parents=True)
        (folder / "checkpoints" / f"checkpoint-{checkpoint}" / MANIFEST).touch()
    return folder


def test_every_state(workshop: Workshop, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    shutil.copytree(workshop.ntp_run, tmp_path / "done")
    shutil.copytree(workshop.ntp_run, tmp_path / "sweep" / "runs" / "arm" / "seed0")
    shutil.copytree(workshop.ntp_run, tmp_path / "torn")
    (tmp_path / "torn" / "metrics.jsonl").unlink()
    begun(workshop, tmp_path / "killed.partial")
    (tmp_path / "empty").mkdir()
    for name, error in (("broke", CoCoMixError("the loss is no longer finite")), ("ctrl_c", KeyboardInterrupt())):
        folder = begun(workshop, tmp_path / f"{name}.partial")
        with pytest.raises(type(error)), signed_in(folder):
            raise error
    running = begun(workshop, tmp_path / "live.partial", checkpoint=None)
    os.utime(running / "metrics.jsonl", (time.time() - 60, time.time() - 60))
    with signed_in(running):
        found = {run.name: run for run in list_runs(tmp_path)}
        shown = cli("runs", tmp_path)
        printed = json.loads(cli("runs", tmp_path, "--json").out)
    assert not (running / SIGN).exists()
    states = {name: (run.state, run.step) for name, run in found.items()}
    manifest = read_json(workshop.ntp_run / "manifest.json")
    assert states == {
        "done": ("finished", manifest["steps"]),
        "sweep/runs/arm/seed0": ("finished", manifest["steps"]),
        "torn": ("unreadable", 0),
        "killed": ("stopped", 6),  # goes on from its checkpoint
        "broke": ("failed", 6),
        "ctrl_c": ("stopped", 6),
        "live": ("running", 9),
    }
    assert (found["done"].loss, found["done"].tokens) == (manifest["final"]["eval_loss"], manifest["tokens"])
    assert (found["live"].loss, found["live"].tokens, found["live"].arm) == (5.5, 900, "cocomix")
    assert found["live"].path == tmp_path / "live"
    assert found["live"].age > 59
    assert found["broke"].detail == "the loss is no longer finite"
    assert "metrics.jsonl" in str(found["torn"].detail)
    ages = [run.age for run in list_runs(tmp_path)]
    assert ages == sorted(ages)
    assert {row["name"]: row["state"] for row in printed} == {name: run.state for name, run in found.items()}
    assert "stopped at step 6" in " ".join(shown.out.split())


def test_a_run_itself(workshop: Workshop, tmp_path: Path) -> None:
    assert [run.name for run in list_runs(workshop.ntp_run)] == [workshop.ntp_run.name]
    assert [run.name for run in list_runs(begun(workshop, tmp_path / "half.partial"))] == ["half"]


def test_nothing_to_list(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli.refuses("runs", says="runs is not a folder")
    (tmp_path / "runs").mkdir()
    assert "cocomix train RECIPE" in cli("runs").err
    assert cli("runs", "--json").out == "[]\n"


def test_signs_that_cannot_be_trusted(workshop: Workshop, tmp_path: Path) -> None:
    folder = begun(workshop, tmp_path / "run.partial")
    with signed_in(folder):
        sign = read_json(folder / SIGN)
    for changes, state, detail in (
        ({"started": sign["started"] - 100}, "stopped", None),  # the number is another process's by now
        ({"pid": 2**22 + 1}, "stopped", None),
        ({"host": "elsewhere"}, "running", "on elsewhere"),
        ({"pid": "x"}, "stopped", None),
    ):
        write_json(folder / SIGN, {**sign, **changes})
        (run,) = list_runs(tmp_path)
        assert (run.state, run.detail) == (state, detail), changes
    (folder / SIGN).write_text("{")
    assert list_runs(tmp_path)[0].state == "stopped"
