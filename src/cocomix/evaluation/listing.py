"""`cocomix runs`: what lies in a folder of runs, finished or not."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cocomix.artifacts import MANIFEST, partial_path
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run
from cocomix.training.checkpoints import checkpoint_step
from cocomix.training.liveness import liveness
from cocomix.training.recipe import load_recipe

__all__ = ["RunSummary", "list_runs"]

_DEPTH = 4
"""Folders below the given one that are looked into; a sweep's runs are at `runs/ARM/SEED`."""
_PARTIAL = partial_path(Path("x")).name.removeprefix("x")


@dataclass(frozen=True)
class RunSummary:
    """One run in a list.

    Attributes:
        name: its folder, relative to the listed one.
        path: where it is, or would be once finished.
        state: `finished`, `running`, `stopped`, `failed`, or `damaged` where a finished run cannot be read.
        arm: what sets it apart in comparisons; `None` where that cannot be read.
        step: optimizer steps done; of a stopped or failed run those of its last checkpoint, from which it goes on.
        tokens: training tokens seen so far.
        loss: last validation loss, nats per token; `None` before the first evaluation.
        age: seconds since it last wrote anything.
        detail: an error, or where it is running; `None` if there is nothing to say.
    """

    name: str
    path: Path
    state: Literal["finished", "running", "stopped", "failed", "damaged"]
    arm: str | None
    step: int
    tokens: int
    loss: float | None
    age: float
    detail: str | None = None


def list_runs(folder: Path, now: float | None = None) -> list[RunSummary]:
    """All runs in a folder and the folders within, the newest first.

    Args:
        folder: of runs, or a run itself.
        now: seconds since the epoch; by default the clock's.

    Raises:
        CoCoMixError: the folder does not exist.
    """
    if not folder.is_dir():
        raise CoCoMixError(
            f"{folder} is not a folder; name the one that holds your runs, or train the first: "
            "cocomix train RECIPE --output runs/first."
        )
    now = time.time() if now is None else now
    found = [
        _unfinished(path, folder, now) if partial else _finished(path, folder, now) for path, partial in _walk(folder)
    ]
    return sorted(found, key=lambda run: run.age)


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """The folders of runs, and whether each is unfinished; what lies within a run is left alone."""
    top = len(folder.parts)
    for place, folders, files in os.walk(folder):
        path = Path(place)
        if path.name.endswith(_PARTIAL) and "recipe.yaml" in files:
            folders.clear()
            yield path, True
        elif "manifest.json" in files and "recipe.yaml" in files:
            folders.clear()
            yield path, False
        elif len(path.parts) - top >= _DEPTH:
            folders.clear()


def _finished(path: Path, folder: Path, now: float) -> RunSummary:
    age = now - (path / "manifest.json").stat().st_mtime
    try:
        run = Run.open(path)
    except CoCoMixError as error:
        return RunSummary(_name(path, folder), path, "damaged", None, 0, 0, None, age, str(error))
    manifest = run.manifest
    arm = manifest.arm or manifest.objective
    loss = manifest.final.eval_loss
    return RunSummary(_name(path, folder), path, "finished", arm, manifest.steps, manifest.tokens, loss, age)


def _unfinished(path: Path, folder: Path, now: float) -> RunSummary:
    whole = path.with_name(path.name.removesuffix(_PARTIAL))
    metrics = path / "metrics.jsonl"
    rows = _rows(metrics)
    alive = liveness(path)
    step = int(rows[-1].get("step", 0)) if rows else 0
    if alive.state != "running":
        marks = (path / "checkpoints").glob(f"checkpoint-*/{MANIFEST}")
        step = max((checkpoint_step(mark.parent) for mark in marks), default=0)
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    tokens = int(rows[-1].get("tokens", 0)) if rows else 0
    try:
        arm = load_recipe(path / "recipe.yaml").arm
    except CoCoMixError:
        arm = None
    written = (metrics if rows else path).stat().st_mtime
    last = losses[-1] if losses else None
    return RunSummary(_name(whole, folder), whole, alive.state, arm, step, tokens, last, now - written, alive.detail)


def _name(path: Path, folder: Path) -> str:
    """Relative to the listed folder; of a run that is that folder itself, its own name."""
    return str(path.relative_to(folder)) if folder in path.parents else path.resolve().name


def _rows(metrics: Path) -> list[dict[str, Any]]:
    """The lines of an unfinished run's `metrics.jsonl`; the last one may be in the middle of being written."""
    rows: list[dict[str, Any]] = []
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return rows
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(row, dict):
            rows.append(row)
    return rows
