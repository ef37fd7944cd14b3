"""Stored teacher distributions: what is written is what the teacher says, once, and resumably."""

import json
import pickle

import numpy as np
import pytest
import torch

from cocomix.concepts.decoder import FrozenDecoder
from cocomix.labelling import TeacherProbabilities, probabilities, write_probabilities
from cocomix.runtime.errors import CoCoMixError

from .conftest import VOCAB, TokenShard, make_model

BLOCK = 9
FIXED = {
    "data_fingerprint": "d" * 64,
    "tokenizer_fingerprint": "t" * 64,
    "block_size": BLOCK,
    "teacher_name": "tiny",
    "batch_tokens": 2 * BLOCK,
}


@pytest.fixture
def decoder():
    return FrozenDecoder(make_model("gpt2"), 0)


@pytest.fixture
def splits():
    return {
        "train": [TokenShard(f"train/{index:05d}", blocks, index, BLOCK) for index, blocks in enumerate((5, 2))],
        "validation": [TokenShard("validation/00000", 3, 3, BLOCK)],
    }


def write(decoder, splits, output, **options):
    return write_probabilities(decoder, splits, output, **{**FIXED, "top_k": 4, "vocab_size": VOCAB, **options})


@pytest.mark.parametrize("backbone", ["gpt2", "gemma3"])
@pytest.mark.parametrize("vocab_size", [VOCAB, VOCAB - 6])
def test_stored_are_the_largest_probabilities(backbone, vocab_size, splits, tmp_path):
    model = make_model(backbone, **({"final_logit_softcapping": 5.0} if backbone == "gemma3" else {}))
    for shards in splits.values():
        for shard in shards:
            shard.tokens %= vocab_size
    manifest = write(FrozenDecoder(model, 0), splits, tmp_path / "out", vocab_size=vocab_size)
    store = TeacherProbabilities.open(tmp_path / "out")
    assert store.manifest == manifest
    assert not store.complete
    for split, shards in splits.items():
        blocks = store.split(split)
        tokens = torch.from_numpy(np.concatenate([shard.tokens for shard in shards]).astype(np.int64))
        assert len(blocks) == len(tokens)
        with torch.no_grad():
            expected = model(tokens).logits[..., :vocab_size].log_softmax(-1).topk(4, dim=-1)
        for index in range(len(blocks)):
            row = blocks[index]
            assert row["teacher_log_probs"].dtype == torch.float16
            assert torch.equal(row["teacher_ids"], expected.indices[index])
            torch.testing.assert_close(row["teacher_log_probs"].float(), expected.values[index], rtol=1e-3, atol=1e-3)
    with pytest.raises(IndexError):
        blocks[len(blocks)]
    assert torch.equal(pickle.loads(pickle.dumps(blocks))[0]["teacher_ids"], blocks[0]["teacher_ids"])  # noqa: S301


def test_the_whole_distribution_can_be_stored(decoder, splits, tmp_path):
    write(decoder, splits, tmp_path / "out", top_k=VOCAB)
    store = TeacherProbabilities.open(tmp_path / "out")
    assert store.complete
    assert store.split("train")[0]["teacher_log_probs"].float().exp().sum(-1).allclose(torch.ones(BLOCK), atol=1e-3)
    for top_k in (0, VOCAB + 1):
        with pytest.raises(CoCoMixError, match=rf"top_k={top_k} must be between 1 and the {VOCAB} tokens"):
            write(decoder, splits, tmp_path / "no", top_k=top_k)


def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(decoder, splits, tmp_path, monkeypatch):
    write(decoder, splits, tmp_path / "whole")
    original = probabilities.write_columns
    written = []

    def failing(path, columns):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)
        original(path, columns)

    with monkeypatch.context() as patched:
        patched.setattr(probabilities, "write_columns", failing)
        with pytest.raises(KeyboardInterrupt):
            write(decoder, splits, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CoCoMixError, match="no finished teacher probabilities"):
        TeacherProbabilities.open(tmp_path / "out")
    with pytest.raises(CoCoMixError, match="begun with another top_k"):
        write(decoder, splits, tmp_path / "out", top_k=5)
    touched = (tmp_path / "out.partial/train/00000.arrow").stat().st_mtime_ns
    manifest = write(decoder, splits, tmp_path / "out")
    assert (tmp_path / "out/train/00000.arrow").stat().st_mtime_ns == touched
    assert manifest.fingerprint == TeacherProbabilities.open(tmp_path / "whole").manifest.fingerprint
    for path in (tmp_path / "whole").rglob("*.arrow"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", "train", "validation"}


def test_probabilities_of_other_tokens_or_another_vocabulary_are_refused(decoder, splits, tmp_path):
    write(decoder, splits, tmp_path / "out")
    store = TeacherProbabilities.open(tmp_path / "out")
    store.check("d" * 64, "t" * 64)
    with pytest.raises(CoCoMixError, match="belong to other tokens"):
        store.check("x", "t" * 64)
    with pytest.raises(CoCoMixError, match="another vocabulary"):
        store.check("d" * 64, "x")


def test_folders_that_are_something_else(decoder, splits, tmp_path):
    write(decoder, splits, tmp_path / "out")
    file = tmp_path / "out/manifest.json"
    whole = json.loads(file.read_text())
    for change, match in (
        ({"kind": "run"}, "something else"),
        ({"format_version": 9}, "has format 9"),
        ({"top_k": "many"}, "is damaged"),
    ):
        file.write_text(json.dumps({**whole, **change}))
        with pytest.raises(CoCoMixError, match=match):
            TeacherProbabilities.open(tmp_path / "out")
    file.write_text(json.dumps(whole))
    (tmp_path / "out/train/00001.arrow").unlink()
    with pytest.raises(CoCoMixError, match=r"lacks its shard train/00001\.arrow"):
        TeacherProbabilities.open(tmp_path / "out")
