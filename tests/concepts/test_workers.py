"""Labelling in several processes writes what one process writes, and stops as it should."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cocomix.concepts import ConceptLabelStore
from cocomix.concepts.workers import _GO_ON
from cocomix.config import DictionaryConfig, TeacherConfig
from cocomix.device import worker_device
from cocomix.errors import CoCoMixError
from cocomix.output import partial_path
from cocomix.pipeline import label_data
from cocomix.reporter import SilentReporter
from tests.workshop import Workshop


class Watcher(SilentReporter):
    """Counts tokens, and calls `act` when the first arrive from a worker."""

    def __init__(self, act: Any = None) -> None:
        self.tokens, self.act, self.total = 0.0, act, 0.0

    def progress(self, description: str, total: float | None, unit: str) -> Any:
        self.total = total or 0.0
        watcher = self

        class Bar:
            def __enter__(self) -> Any:
                return watcher.advance

            def __exit__(self, *error: Any) -> None:
                pass

        return Bar()

    def advance(self, amount: float) -> None:
        self.tokens += amount
        if amount and self.act is not None:
            act, self.act = self.act, None
            act()


def label(workshop: Workshop, output: Path, reporter: Any = None, workers: int = 2) -> Any:
    source = TeacherConfig(model=str(workshop.teacher), layer=1)
    dictionary = DictionaryConfig(path=str(workshop.dictionary))
    return label_data(workshop.data, source, dictionary, output, workers=workers, reporter=reporter)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.arrow"))}


def children() -> set[int]:
    """Processes of `multiprocessing` that this one started and that are still there."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, fields = int(path.parent.name), path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z" and "spawn_main" in command:
            found.add(pid)
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds its children in /proc")


@needs_proc
@pytest.mark.slow
def test_two_workers_one_killed_then_resumed_write_the_bytes_of_one(workshop: Workshop, tmp_path: Path) -> None:
    before = children()

    def kill_one() -> None:
        os.kill(min(children() - before), signal.SIGKILL)

    with pytest.raises(CoCoMixError, match=f"worker label-[01] was killed by signal 9; {_GO_ON}"):
        label(workshop, tmp_path / "labels", Watcher(kill_one))
    assert children() == before
    assert not (tmp_path / "labels").exists()
    watcher = Watcher()
    manifest = label(workshop, tmp_path / "labels", watcher)
    assert watcher.tokens == watcher.total > 0
    assert children() == before
    assert contents(tmp_path / "labels") == contents(workshop.labels)
    expected = ConceptLabelStore.open(workshop.labels).manifest
    assert manifest.fingerprint == expected.fingerprint
    assert manifest.statistics.tokens_per_second > 0
    assert not list((tmp_path / "labels").rglob("*.tmp"))


@needs_proc
@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_one_process_goes_on(workshop: Workshop, tmp_path: Path) -> None:
    before = children()

    def interrupt() -> None:
        for pid in children() - before:
            os.kill(pid, signal.SIGINT)  # as a terminal does; workers leave the answer to their caller
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(workshop, tmp_path / "labels", Watcher(interrupt))
    assert children() == before
    assert partial_path(tmp_path / "labels").is_dir()
    label(workshop, tmp_path / "labels", workers=1)
    assert contents(tmp_path / "labels") == contents(workshop.labels)


@pytest.mark.slow
def test_a_worker_that_cannot_work_says_why(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cocomix.pipeline

    monkeypatch.setattr(
        cocomix.pipeline, "_source", lambda *sections: original(*sections) if not opened else moved(*sections)
    )
