"""`cocomix runs`: what lies in a folder of runs, finished or not."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cocomix.artifacts import MANIFEST, partial_path
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run
from cocomix.training.checkpoints import checkpoint_step
from cocomix.training.liveness import liveness
from cocomix.training.recipe import load_recipe

_DEPTH = 4  # folders below the given one that are looked into; a sweep's runs are at `runs/ARM/SEED`
_PARTIAL = partial_path(Path("x")).name.removeprefix("x")


@dataclass(frozen=True)
class RunSummary:
    """One run in a list."""

    name: str  # its folder, relative to the listed one
    path: Path  # where it is, or would be once finished
    # `unreadable`: a finished run that is damaged or of another version
    state: Literal["finished", "running", "stopped", "failed", "unreadable"]
    arm: str | None  # what sets it apart in comparisons; `None` where that cannot be read
    step: int  # optimizer steps done; of a stopped or failed run those of its last checkpoint, from which it goes on
    tokens: int
    loss: float | None  # last validation loss, nats per token; `None` before the first evaluation
    age: float  # seconds since it last wrote anything
    detail: str | None = None  # an error, or where it is running; `None` if there is nothing to say


def list_runs(folder: Path) -> list[RunSummary]:
    """All runs in a folder (or a run itself) and the folders within, the newest first; refused where there is none."""
    if not folder.is_dir():
        raise CoCoMixError(
            f"{folder} is not a folder; name the one that holds your runs, or train the first: "
            "cocomix train RECIPE --output runs/first."
        )
    now = time.time()
    return sorted((_summary(path, folder, now) for path in _walk(folder)), key=lambda run: run.age)


def _walk(folder: Path) -> Iterator[Path]:
    """The folders of runs, finished or not; what lies within a run is left alone."""
    for place, folders, files in os.walk(folder):
        path = Path(place)
        if "recipe.yaml" in files and (path.name.endswith(_PARTIAL) or MANIFEST in files):
            folders.clear()
            yield path
        elif len(path.parts) - len(folder.parts) >= _DEPTH:
            folders.clear()


def _summary(path: Path, folder: Path, now: float) -> RunSummary:
    whole = path.with_name(path.name.removesuffix(_PARTIAL))
    name = str(whole.relative_to(folder)) if folder in path.parents else whole.resolve().name
    if path == whole:
        age = now - (path / MANIFEST).stat().st_mtime
        try:
            made = Run.open(path).manifest
        except CoCoMixError as error:
            return RunSummary(name, path, "unreadable", None, 0, 0, None, age, str(error))
        arm = made.arm or made.objective
        return RunSummary(name, path, "finished", arm, made.steps, made.tokens, made.final.eval_loss, age)
    lines: list[Any] = []
    with suppress(OSError, ValueError):  # so far as it can be read: the last line may be in the middle of being written
        text = (path / "metrics.jsonl").read_text(encoding="utf-8")
        lines.extend(json.loads(line) for line in text.splitlines())
    rows, alive = [row for row in lines if isinstance(row, dict)], liveness(path)
    last = rows[-1] if rows else {}
    step = int(last.get("step", 0))
    if alive.state != "running":
        step = max((checkpoint_step(mark.parent) for mark in path.glob(f"checkpoints/*/{MANIFEST}")), default=0)
    try:
        unfinished = load_recipe(path / "recipe.yaml").arm
    except CoCoMixError:
        unfinished = None
    loss = next((row["eval_loss"] for row in reversed(rows) if "eval_loss" in row), None)
    age = now - (path / "metrics.jsonl" if rows else path).stat().st_mtime
    tokens = int(last.get("tokens", 0))
    return RunSummary(name, whole, alive.state, unfinished, step, tokens, loss, age, alive.detail)
