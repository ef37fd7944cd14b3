"""Writing labels (labelling.py) and reading them (labels.py)."""

import json
import pickle

import numpy as np
import pytest
import torch

from cocomix.concepts import ConceptTeacher
from cocomix.labelling import ConceptLabelStore, LabelSettings, finishing, shards, write_labels
from cocomix.labelling.labels import id_storage
from cocomix.runtime.errors import CoCoMixError

from .conftest import CONCEPTS, VOCAB, TokenShard, make_dictionary, make_model

BLOCK = 9
FINGERPRINTS = {"data_fingerprint": "d" * 64, "tokenizer_fingerprint": "t" * 64, "block_size": BLOCK}


@pytest.fixture
def teacher():
    return ConceptTeacher(make_model("gpt2"), make_dictionary(), 1, name="tiny")


@pytest.fixture
def splits():
    return {
        "train": [TokenShard(f"train/{index:05d}", blocks, index, BLOCK) for index, blocks in enumerate((5, 5, 2))],
        "validation": [TokenShard("validation/00000", 3, 3, BLOCK)],
    }


def write(teacher, splits, output, settings=None, **options):
    return write_labels(teacher, splits, output, settings, **{**FINGERPRINTS, "batch_tokens": 2 * BLOCK, **options})


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.arrow"))}


@pytest.mark.parametrize("score_dtype", ["float16", "float32"])
def test_stored_labels_are_the_teachers(teacher, splits, tmp_path, score_dtype):
    settings = LabelSettings(k=3, score_dtype=score_dtype, sign="abs")
    manifest = write(teacher, splits, tmp_path / "labels", settings)
    store = ConceptLabelStore.open(tmp_path / "labels")
    assert store.manifest == manifest
    assert not (tmp_path / "labels.partial").exists()
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {"manifest.json", "train", "validation"}
    labelled = entries = 0
    distinct = set()
    for split, members in splits.items():
        blocks = store.split(split)
        tokens = np.concatenate([shard.tokens for shard in members]).astype(np.int64)
        assert len(blocks) == len(tokens)
        for index, row in enumerate(tokens):
            expected = teacher.label(torch.from_numpy(row)[None], k=3, sign="abs", reduction="sum")
            found = blocks[index]["concept_labels"]
            assert found.dtype == torch.int64
            assert torch.equal(found, expected.ids[0])
            tolerance = 2e-3 if score_dtype == "float16" else 1e-4
            torch.testing.assert_close(blocks.scores(index), expected.scores[0], rtol=tolerance, atol=1e-5)
            labelled += int((found != -100).any(-1).sum())
            entries += int((found != -100).sum())
            distinct |= set(found[found != -100].tolist())
    statistics = manifest.statistics
    assert (statistics.labelled_positions, statistics.labels) == (labelled, entries)
    assert statistics.labelled_positions + statistics.masked_positions == 15 * BLOCK
    assert statistics.distinct_concepts == len(distinct)


def test_an_interrupted_run_continues_and_writes_the_same_bytes(teacher, splits, tmp_path, monkeypatch):
    whole = write(teacher, splits, tmp_path / "whole")
    label, calls = ConceptTeacher.label, []

    def interrupted(self, input_ids, *args, **kwargs):
        calls.append(len(input_ids))
        if len(calls) == 5:  # in the middle of the second shard
            raise KeyboardInterrupt
        return label(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(ConceptTeacher, "label", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(teacher, splits, tmp_path / "labels")
    assert not (tmp_path / "labels").exists()
    assert list(contents(tmp_path / "labels.partial")) == ["train/00000.arrow"]
    with pytest.raises(CoCoMixError, match="not finished; run the same"):
        ConceptLabelStore.open(tmp_path / "labels")
    calls.clear()
    calls.extend([0] * 5)
    manifest = write(teacher, splits, tmp_path / "labels")
    assert sum(calls) == 10  # blocks of the three shards that were left
    assert contents(tmp_path / "labels") == contents(tmp_path / "whole")
    assert manifest.fingerprint == whole.fingerprint


def test_a_shard_damaged_while_interrupted_is_written_again(teacher, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(finishing, "_manifest", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write(teacher, splits, tmp_path / "labels")
    monkeypatch.undo()
    shard = tmp_path / "labels.partial" / "train" / "00001.arrow"
    expected = shard.read_bytes()
    shard.write_bytes(expected[:-1] + b"?")
    write(teacher, splits, tmp_path / "labels")
    assert (tmp_path / "labels" / "train" / "00001.arrow").read_bytes() == expected


def test_a_partial_folder_of_something_else_is_refused(teacher, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(ConceptTeacher, "label", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write(teacher, splits, tmp_path / "labels")
    with pytest.raises(CoCoMixError, match="begun with another data_fingerprint, settings; remove it"):
        write(teacher, splits, tmp_path / "labels", LabelSettings(k=2), data_fingerprint="e" * 64)
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "file").touch()
    with pytest.raises(CoCoMixError, match="holds something else"):
        write(teacher, splits, tmp_path / "other")


def test_an_existing_output_is_refused(teacher, splits, tmp_path):
    write(teacher, splits, tmp_path / "labels")
    with pytest.raises(CoCoMixError, match="already exists"):
        write(teacher, splits, tmp_path / "labels")


def test_a_full_disk_leaves_a_run_that_can_continue(teacher, splits, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises((CoCoMixError, OSError), match="No space left on device"):
        write(teacher, splits, tmp_path / "labels")
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.tmp"))
    write(teacher, splits, tmp_path / "labels")


def test_tokens_that_do_not_fit_name_the_shard(teacher, splits, tmp_path):
    splits["train"][1].tokens[2, 3] = VOCAB
    with pytest.raises(CoCoMixError, match=f"shard train/00001 has token {VOCAB} but the teacher knows {VOCAB}"):
        write(teacher, splits, tmp_path / "labels")
    splits["train"][0].tokens = splits["train"][0].tokens[:, :4]
    with pytest.raises(CoCoMixError, match=r"shard train/00000 has shape \[5, 4\]"):
        write(teacher, splits, tmp_path / "again")


def test_a_missing_shard_is_named(teacher, splits, tmp_path):
    write(teacher, splits, tmp_path / "labels")
    (tmp_path / "labels" / "train" / "00001.arrow").unlink()
    with pytest.raises(CoCoMixError, match=r"lacks its shard train/00001\.arrow; run the same `cocomix label` again"):
        ConceptLabelStore.open(tmp_path / "labels")


def test_labels_of_other_tokens_tokenizer_or_size_are_refused(teacher, splits, tmp_path):
    write(teacher, splits, tmp_path / "labels")
    store = ConceptLabelStore.open(tmp_path / "labels")
    store.check("d" * 64, "t" * 64, CONCEPTS)
    with pytest.raises(CoCoMixError, match="another tokenizer"):
        store.check("d" * 64, "x" * 64, CONCEPTS)
    with pytest.raises(CoCoMixError, match="other tokens"):
        store.check("x" * 64, "t" * 64, CONCEPTS)
    with pytest.raises(CoCoMixError, match="name 48 concepts, but the model has 47"):
        store.check("d" * 64, "t" * 64, CONCEPTS - 1)
    with pytest.raises(CoCoMixError, match="no split 'test', only train, validation"):
        store.split("test")


def test_folders_that_are_not_labels_are_refused(tmp_path):
    with pytest.raises(CoCoMixError, match="holds no concept labels"):
        ConceptLabelStore.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(CoCoMixError, match="label format 99"):
        ConceptLabelStore.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 1, "layer": 3}))
    with pytest.raises(CoCoMixError, match="is damaged"):
        ConceptLabelStore.open(tmp_path)


def test_a_split_can_be_pickled_and_has_an_end(teacher, splits, tmp_path):
    write(teacher, splits, tmp_path / "labels")
    blocks = ConceptLabelStore.open(tmp_path / "labels").split("train")
    first = blocks[0]["concept_labels"]
    copy = pickle.loads(pickle.dumps(blocks))  # noqa: S301 (what a loader worker does with our own object)
    assert torch.equal(copy[0]["concept_labels"], first)
    assert len(blocks) == 12
    with pytest.raises(IndexError):
        blocks[12]
    with pytest.raises(IndexError):
        blocks[-1]


def test_ids_take_two_bytes_while_they_fit():
    assert id_storage(65_535) == (np.dtype(np.uint16), 65_535)
    assert id_storage(65_536) == (np.dtype(np.int32), -1)


def test_a_teacher_without_a_finite_loss_is_refused(splits, tmp_path):
    model = make_model("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(CoCoMixError, match="loss of the teacher tiny is not finite"):
        write(ConceptTeacher(model, make_dictionary(), 1, name="tiny"), splits, tmp_path / "labels")
