"""The state of every run of a sweep, for a live table and for the summary."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cocomix.artifacts import partial_path, read_json
from cocomix.experiments.plan import Job

__all__ = ["Board", "Entry", "Status"]

Status = Literal["waiting", "running", "finished", "failed"]


@dataclass(frozen=True)
class Entry:
    """One run as the table shows it.

    Attributes:
        arm: its arm.
        seed: its seed.
        status: what it does now.
        tokens: training tokens seen at its last log line.
        loss: validation loss of its last evaluation, nats per token; `None` before the first.
        error: why it failed, one sentence.
        is_try: whether it only helps to choose a learning rate.
    """

    arm: str
    seed: int
    status: Status
    tokens: int = 0
    loss: float | None = None
    error: str | None = None
    is_try: bool = False


class Board:
    """Thread-safe states of jobs; numbers of running ones are read from their own logs.

    Args:
        jobs: all runs of the sweep; those whose folder is there count as finished.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._lock = threading.Lock()
        self._jobs = {(job.arm, job.seed): job for job in jobs}
        self._entries = {
            key: Entry(*key, "finished" if job.folder.exists() else "waiting", is_try=job.try_of is not None)
            for key, job in self._jobs.items()
        }

    def mark(self, job: Job, status: Status, error: str | None = None) -> None:
        """Set a run's state."""
        key = (job.arm, job.seed)
        with self._lock:
            self._entries[key] = replace(self._entries[key], status=status, error=error)

    def entries(self) -> list[Entry]:
        """All runs in the order of the jobs, with what their logs say at this moment."""
        with self._lock:
            entries = list(self._entries.items())
        return [_with_progress(entry, self._jobs[key].folder) for key, entry in entries]


def _with_progress(entry: Entry, folder: Path) -> Entry:
    if entry.status == "finished":
        manifest = read_json(folder / "manifest.json")
        return replace(entry, tokens=manifest["tokens"], loss=manifest["final"]["eval_loss"])
    tokens, loss = 0, None
    try:
        lines = (partial_path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return entry
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the line that is being written
            break
        tokens, loss = int(row["tokens"]), row.get("eval_loss", loss)
    return replace(entry, tokens=tokens, loss=loss)
