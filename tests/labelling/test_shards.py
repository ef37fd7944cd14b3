"""The thread that writes labels while the next shard is computed."""

import threading

import pytest
import torch

from cocomix.concepts import ConceptLabels
from cocomix.labelling import LabelSettings, shards
from cocomix.labelling.shards import ShardPlan, ShardWriter, finished_shard, shard_record

from .conftest import CONCEPTS


@pytest.fixture
def plan(tmp_path):
    return ShardPlan(tmp_path, LabelSettings(k=2), block_size=3, batch=1, n_concepts=CONCEPTS)


def some_labels(seed=0):
    ids = torch.randint(CONCEPTS, (4, 3, 2), generator=torch.Generator().manual_seed(seed))
    ids[:, -1] = -100
    return ConceptLabels(ids, ids.clamp(min=0).float())


def test_the_next_shard_is_computed_while_one_is_written(plan, monkeypatch):
    store, computed, order = shards.store_shard, threading.Event(), []

    def slow(plan, name, labels):
        assert threading.current_thread() is not threading.main_thread()
        assert computed.wait(timeout=20)  # the caller goes on meanwhile
        store(plan, name, labels)
        order.append(name)

    monkeypatch.setattr(shards, "store_shard", slow)
    with ShardWriter(plan) as writer:
        writer.write("train/00000", some_labels())
        computed.set()
        writer.write("train/00001", some_labels(1))
    assert order == ["train/00000", "train/00001"]
    assert all(finished_shard(plan.folder, name) for name in order)


def test_an_error_in_the_thread_is_raised_at_the_next_shard_or_at_the_end(plan, monkeypatch):
    def broken(plan, name, labels):
        raise OSError(28, "No space left on device")

    def write(*names):
        with ShardWriter(plan) as writer:
            for name in names:
                writer.write(name, some_labels())
                written.append(name)

    monkeypatch.setattr(shards, "store_shard", broken)
    written = []
    with pytest.raises(OSError, match="No space left"):
        write("train/00000", "train/00001", "train/00002")
    assert written == ["train/00000"]
    with pytest.raises(OSError, match="No space left"):
        write("train/00000")


def test_a_stop_lets_the_shard_being_written_finish(plan):
    def write_and_stop():
        with ShardWriter(plan) as writer:
            writer.write("train/00000", some_labels())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert finished_shard(plan.folder, "train/00000")


def test_a_record_counts_its_labels(plan):
    labels = some_labels()
    shards.store_shard(plan, "train/00000", labels)
    record = shard_record(plan.folder, "train/00000")
    assert (record["blocks"], record["labelled_positions"], record["labels"]) == (4, 8, 16)
    assert not finished_shard(plan.folder, "train/00001")
    path = plan.folder / "train" / "00000.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    assert not finished_shard(plan.folder, "train/00000")
