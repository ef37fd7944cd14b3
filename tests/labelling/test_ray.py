"""Labelling on a Ray cluster of two nodes on this machine writes what one process writes, with a worker killed."""

import sys
from dataclasses import dataclass

import pytest

from cocomix.artifacts.output import partial_path
from cocomix.labelling import RaySettings, ray_engine
from cocomix.labelling.labels import LabelSettings
from cocomix.labelling.shards import ShardPlan
from cocomix.runtime.errors import CoCoMixError
from tests.ray_kill import Killer, begun_by, journalled, two_nodes

from .conftest import CONCEPTS, VOCAB, TokenShard
from .test_workers import BLOCK, TinySource, Watcher, contents, label


@dataclass(frozen=True)
class WatchedSource(TinySource):
    """Notes which process begins a shard."""

    journal: str = ""

    def load(self, device=None):
        return journalled(super().load(device), self.journal)


@pytest.fixture
def splits():
    return {
        "train": [TokenShard(f"train/{index:05d}", 2, index, BLOCK) for index in range(6)],
        "validation": [TokenShard("validation/00000", 2, 9, BLOCK)],
    }


def settings(address):
    return RaySettings(address, gpus=0)


@pytest.mark.slow
def test_a_worker_of_two_nodes_is_killed_and_the_labels_are_those_of_one_process(splits, tmp_path):
    pytest.importorskip("ray")
    with two_nodes() as address:
        kill_and_compare(splits, address, tmp_path)


def kill_and_compare(splits, address, tmp_path):
    label(splits, tmp_path / "one", workers=1)
    journal, watcher = tmp_path / "journal", Watcher()
    killer = Killer(journal)
    killer.start()
    source = WatchedSource(journal=str(journal))
    manifest = label(splits, tmp_path / "labels", source=source, ray=settings(address), reporter=watcher)
    begun = begun_by(journal)
    assert killer.killed in begun
    assert len(begun) == 7 + 1  # one shard was begun twice
    assert len(set(killer.nodes.values())) == 2
    assert watcher.tokens == watcher.total == 14 * BLOCK
    assert contents(tmp_path / "labels") == contents(tmp_path / "one")
    assert manifest.fingerprint == label(splits, tmp_path / "again", workers=1).fingerprint

    splits["train"][4].tokens[0, 0] = VOCAB
    with pytest.raises(CoCoMixError, match=f"shard train/00004 has token {VOCAB} but the teacher knows"):
        label(splits, tmp_path / "broken", ray=settings(address))
    finished = contents(partial_path(tmp_path / "broken"))
    assert finished.items() <= contents(tmp_path / "one").items()


def test_what_a_task_returns(splits, tmp_path):
    shard, source = splits["train"][0], TinySource()
    teacher = source.load()
    fingerprints = (teacher.fingerprint(), teacher.dictionary.fingerprint())
    plan = ShardPlan(tmp_path, LabelSettings(), BLOCK, 2, CONCEPTS)
    order = ray_engine._Order(source, fingerprints, plan, 1, False)
    encoded = ray_engine._label(order, shard.name, shard.tokens)
    assert encoded.columns["concept_ids"].shape == (2, BLOCK * 4)
    assert 0 < encoded.tallies["labelled_positions"] <= 2 * BLOCK
    shard.tokens[0, 0] = VOCAB
    assert f"shard {shard.name} has token {VOCAB}" in ray_engine._label(order, shard.name, shard.tokens)
    other = ray_engine._Order(source, ("another", "one"), plan, 1, False)
    assert ray_engine._label(other, shard.name, shard.tokens).startswith("tiny or random is not on every node what")
    unfit = ray_engine._label(order, shard.name, None)
    assert unfit.startswith(f"labelling the shard {shard.name} on a Ray node failed (")
    assert unfit.endswith("run the same command again to go on.")


def test_a_cluster_that_cannot_be_joined(splits, tmp_path, monkeypatch):
    with pytest.raises(CoCoMixError, match=r"cannot join a Ray cluster at nowhere \(.*\); check --address"):
        label(splits, tmp_path / "labels", ray=settings("nowhere"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CoCoMixError, match=r"--engine ray needs Ray; run: pip install 'cocomix\[ray\]'"):
        label(splits, tmp_path / "labels", ray=settings(None))
    assert not contents(partial_path(tmp_path / "labels"))


@pytest.mark.parametrize("wrong", [{"gpus": -1}, {"cpus": 0}, {"retries": -1}])
def test_a_task_of_an_impossible_size(wrong):
    with pytest.raises(CoCoMixError, match="a Ray task cannot take"):
        RaySettings(**wrong)


def test_a_task_larger_than_every_node_is_told(monkeypatch):
    class Cluster:
        @staticmethod
        def nodes():
            return [
                {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}},
                {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
            ]

    said = []

    class Told(Watcher):
        def warn(self, message):
            said.append(message)

    assert ray_engine._gpus_of_a_task(Cluster, RaySettings(), Told()) == 1.0
    assert not said
    assert ray_engine._gpus_of_a_task(Cluster, RaySettings(gpus=2, cpus=2), Told()) == 2
    assert "no node of the Ray cluster has 2 CPU cores and 2 GPUs for a task; waiting" in said[0]


class PlainRay:
    """Ray's functions that the engine uses, in this process: a task runs when it is waited for."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, lost=()):
        self.options, self.cancelled, self.at_once, self.running, self.lost = {}, [], 0, [], set(lost)

    def is_initialized(self):
        return True

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def put(self, value):
        return value

    def remote(self, **options):
        self.options = options

        def decorate(function):
            def submit(order, name, tokens):
                self.running.append((function, order, name, tokens))
                self.at_once = max(self.at_once, len(self.running))
                return name

            return type("Task", (), {"remote": staticmethod(submit)})

        return decorate

    def wait(self, references):
        assert references == [name for _, _, name, _ in self.running]
        return references[-1:], references[:-1]

    def get(self, reference):
        found = next(task for task in self.running if task[2] == reference)
        self.running.remove(found)
        if reference in self.lost:
            raise self.exceptions.RayError
        function, *arguments = found
        return function(*arguments)

    def cancel(self, reference, force):
        self.cancelled.append((reference, force))


def test_tasks_in_any_order_give_the_bytes_of_one_process(splits, tmp_path, monkeypatch):
    label(splits, tmp_path / "one", workers=1)
    monkeypatch.setattr(ray_engine, "keep_freed_memory", lambda: True)
    ray = PlainRay()
    monkeypatch.setattr(ray_engine, "_import_ray", lambda: ray)
    watcher = Watcher()
    label(splits, tmp_path / "labels", workers=3, ray=RaySettings(cpus=1, retries=2), reporter=watcher)
    assert contents(tmp_path / "labels") == contents(tmp_path / "one")
    assert ray.options == {"num_cpus": 1, "num_gpus": 0.0, "max_retries": 2, "max_calls": 0}
    assert ray.at_once == 3
    assert ray.cancelled == []
    assert watcher.tokens == watcher.total == 14 * BLOCK


def test_a_task_that_is_lost_for_good_ends_the_others(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "keep_freed_memory", lambda: True)
    ray = PlainRay(lost={"train/00003"})
    monkeypatch.setattr(ray_engine, "_import_ray", lambda: ray)
    with pytest.raises(CoCoMixError, match=r"shard train/00003 was lost after as many .* \(RayError\); finished"):
        label(splits, tmp_path / "labels", workers=2, ray=RaySettings(gpus=0))
    assert ray.cancelled == [("train/00000", True)]
    assert set(contents(partial_path(tmp_path / "labels"))) == {"train/00001.arrow", "train/00002.arrow"}
    ray.lost, ray.running = set(), []
    label(splits, tmp_path / "labels", workers=2, ray=RaySettings(gpus=0))  # goes on
    label(splits, tmp_path / "one", workers=1)
    assert contents(tmp_path / "labels") == contents(tmp_path / "one")
