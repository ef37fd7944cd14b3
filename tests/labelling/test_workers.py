"""Labelling in several processes writes what one process writes, and stops as it should."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from cocomix.artifacts.output import partial_path
from cocomix.concepts import ConceptTeacher, TeacherSource
from cocomix.labelling import workers, write_labels
from cocomix.labelling.labels import LabelSettings
from cocomix.labelling.shards import ShardPlan
from cocomix.runtime.device import default_device, worker_device
from cocomix.runtime.errors import CoCoMixError

from .conftest import CONCEPTS, VOCAB, TokenShard, make_dictionary, make_model

BLOCK = 9


@dataclass(frozen=True)
class TinySource(TeacherSource):
    """Makes the tiny teacher instead of loading one."""

    model: str = "tiny"
    layer: int = 1
    dictionary: str = "random"

    def load(self, device=None):
        return ConceptTeacher(make_model("gpt2"), make_dictionary(), self.layer, name=self.model)


class Watcher:
    """A reporter that counts tokens and can do something when the first arrive."""

    def __init__(self, act=None):
        self.tokens, self.total, self.act = 0, None, act

    def say(self, message):
        pass

    warn = say

    @contextmanager
    def progress(self, description: str, total: float | None, unit: str) -> Iterator[object]:
        self.total = total
        yield self.advance

    def advance(self, tokens):
        self.tokens += tokens
        if tokens and self.act is not None:
            act, self.act = self.act, None
            act()


@pytest.fixture
def splits():
    return {
        "train": [TokenShard(f"train/{index:05d}", 3, index, BLOCK) for index in range(5)],
        "validation": [TokenShard("validation/00000", 2, 9, BLOCK)],
    }


@pytest.fixture
def one(splits, tmp_path):
    label(splits, tmp_path / "one", workers=1)
    return contents(tmp_path / "one")


def label(splits, output, *, workers=2, teacher=None, **options):
    source = TinySource()
    fingerprints = {"data_fingerprint": "d" * 64, "tokenizer_fingerprint": "t" * 64, "block_size": BLOCK}
    options = {"source": source, "batch_tokens": 2 * BLOCK, **fingerprints, **options}
    return write_labels(teacher or source.load(), splits, output, workers=workers, **options)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.arrow"))}


@pytest.mark.slow
def test_one_of_two_is_killed_and_the_resumed_run_writes_the_bytes_of_one(splits, one, tmp_path):
    def kill():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(CoCoMixError, match=r"worker label-\d was killed by signal 9; finished shards are kept"):
        label(splits, tmp_path / "labels", reporter=Watcher(kill))
    assert not multiprocessing.active_children()
    assert not (tmp_path / "labels").exists()
    finished = contents(partial_path(tmp_path / "labels"))
    assert finished.items() <= one.items()
    watcher = Watcher()
    manifest = label(splits, tmp_path / "labels", reporter=watcher)
    assert not multiprocessing.active_children()
    assert watcher.tokens == watcher.total == 17 * BLOCK
    assert contents(tmp_path / "labels") == one
    assert manifest.fingerprint == label(splits, tmp_path / "again", workers=1).fingerprint
    assert manifest.statistics.tokens_per_second > 0


def test_ctrl_c_ends_workers_that_are_still_starting(splits, tmp_path, monkeypatch):
    def interrupt(connections):
        children = multiprocessing.active_children()
        assert len(children) == 2
        for child in children:  # a terminal sends it to all
            os.kill(child.pid, signal.SIGINT)
        time.sleep(0.3)
        assert all(child.is_alive() for child in children)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "wait", interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        label(splits, tmp_path / "labels")
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGINT) is before
    assert partial_path(tmp_path / "labels").is_dir()


class Line:
    """A connection on which one shard and then the end is waiting; keeps what is sent."""

    def __init__(self, shard):
        self.waiting, self.sent = [shard, None], []

    def recv(self):
        return self.waiting.pop(0)

    def send(self, message):
        self.sent.append(message)


def messages(monkeypatch, tmp_path, shard, fingerprints=None):
    """What a worker says when it is given one shard; it runs in this process."""
    monkeypatch.setattr(workers, "keep_freed_memory", lambda: True)
    source, line = TinySource(), Line(shard)
    teacher = source.load()
    plan = ShardPlan(tmp_path, LabelSettings(), BLOCK, 2, CONCEPTS)
    expected = fingerprints or (teacher.fingerprint(), teacher.dictionary.fingerprint())
    workers._work(0, 1, source, expected, plan, line)
    return line.sent


def test_a_worker_reports_its_tokens_and_asks_for_more(splits, tmp_path, monkeypatch):
    shard = splits["train"][0]
    said = messages(monkeypatch, tmp_path, shard)
    assert said == [("ready", None), ("tokens", 2 * BLOCK), ("tokens", BLOCK), ("ready", None)]
    assert (tmp_path / f"{shard.name}.arrow").is_file()


def test_a_worker_that_cannot_work_says_why(splits, tmp_path, monkeypatch):
    shard = splits["train"][0]
    said = messages(monkeypatch, tmp_path, shard, fingerprints=("another", "one"))
    assert said == [("failed", "tiny or random is not what labelling began with; run the same command again.")]
    shard.tokens[0, 0] = VOCAB
    kind, sentence = messages(monkeypatch, tmp_path, shard)[-1]
    assert kind == "failed"
    assert f"shard train/00000 has token {VOCAB}" in sentence
    monkeypatch.setattr(workers, "label_shard", lambda *arguments: 1 / 0)
    kind, sentence = messages(monkeypatch, tmp_path, shard)[-1]
    assert kind == "failed"
    assert sentence.startswith("a labelling worker failed (ZeroDivisionError: division by zero); finished shards")


def test_a_number_of_workers_that_cannot_be_is_refused(splits, tmp_path):
    with pytest.raises(CoCoMixError, match="workers is 0; it must be at least 1"):
        label(splits, tmp_path / "labels", workers=0)
    with pytest.raises(CoCoMixError, match="more than one need a TeacherSource"):
        label(splits, tmp_path / "labels", source=None)


def test_workers_take_the_accelerators_in_turn(monkeypatch):
    assert worker_device(3) == default_device() or default_device().type != "cpu"
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    assert [str(worker_device(index)) for index in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
