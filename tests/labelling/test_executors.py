"""Processes compute what one process computes, also when some of them are killed, and end when they should."""

import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.labelling import executors
from cocomix.labelling.executors import Inline, Processes
from cocomix.labelling.map_shards import PartFolder, Report, map_shards
from cocomix.runtime.device import default_device, worker_device
from cocomix.runtime.errors import CoCoMixError

from .shards import BLOCK, Doubled, toy_shards
from .test_map_shards import contents


def compute(folder: Path, executor: Any, **trouble: Any) -> Report:
    folder.mkdir(exist_ok=True)
    function = Doubled(folder.parent / f"{folder.name}-journal", **trouble)
    return map_shards(
        function,
        toy_shards(),
        folders=[PartFolder(folder, {name: name for name in function.columns})],
        executor=executor,
    )


def test_a_killed_process_is_replaced_and_the_files_are_those_of_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compute(tmp_path / "one", Inline())
    with caplog.at_level(logging.WARNING):
        report = compute(tmp_path / "two", Processes(2), trouble={10: "killed once"})
    assert "killed by signal 9" in caplog.text
    assert (report.tokens, report.failed, report.left) == (10 * BLOCK, {}, [])
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert not multiprocessing.active_children()
    assert Doubled(tmp_path / "two-journal").begun(10) == 2


def test_a_shard_that_kills_its_process_is_listed_and_the_rest_is_done(tmp_path: Path) -> None:
    report = compute(tmp_path / "two", Processes(1), trouble={10: "killed", 20: "refused"})
    assert set(report.failed) == {"train-00000[2:4]", "train-00000[4:5]"}
    assert "signal 9" in report.failed["train-00000[2:4]"]
    assert report.failed["train-00000[4:5]"] == "token 20 is refused."
    assert report.left == ["train-00000[2:4]", "train-00000[4:5]"]
    assert Doubled(tmp_path / "two-journal").begun(10) == 3


def test_processes_that_cannot_begin_say_why(tmp_path: Path) -> None:
    with pytest.raises(CoCoMixError, match="there is no such model here"):
        compute(tmp_path / "two", Processes(1), trouble={0: "setup"})
    assert not multiprocessing.active_children()


def test_nothing_is_loaded_where_nothing_is_left(tmp_path: Path) -> None:
    compute(tmp_path / "one", Inline())
    for executor in (Inline(), Processes(2)):
        assert compute(tmp_path / "one", executor, trouble={0: "setup"}).tokens == 0


def test_ctrl_c_ends_processes_that_are_still_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(connections: Any) -> None:
        children = multiprocessing.active_children()
        assert len(children) == 2
        for child in children:  # a terminal sends it to all
            os.kill(child.pid or 0, signal.SIGINT)
        time.sleep(0.3)
        assert all(child.is_alive() for child in children)
        raise KeyboardInterrupt

    monkeypatch.setattr(executors, "wait", interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "two", Processes(2))
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGINT) is before


def test_workers_take_the_accelerators_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_device(3) == default_device() or default_device().type != "cpu"
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    assert [str(worker_device(index)) for index in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
