"""Blocks that begin with the begin-of-text token: packed as a slow twin packs them, and told of beside them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cocomix.artifacts import verify
from cocomix.data import MixedData, PrepareSettings, Tokens, begin_of_text, prepare
from cocomix.data.token_blocks import positions_of_rows
from cocomix.data.tokenizer import encode_batch, plain_encoder, tokenizer_fingerprint, train_tokenizer
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer
from tests.command_line import Cli
from tests.data.conftest import story, write_jsonl

BLOCK = 9
STORIES = [story(number) for number in range(20)]
HELD_OUT = [story(number) for number in range(20, 25)]


@pytest.fixture(scope="module", params=["<bos>", "<|endoftext|>"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers whose begin-of-text token is one of its own, and the end-of-document token, as in GPT-2."""
    folder = tmp_path_factory.mktemp("tokenizer")
    trained = train_tokenizer(STORIES, 300)
    trained.add_special_tokens({"bos_token": request.param})
    trained.save_pretrained(folder)
    return folder


def prepared(tokenizer: Path, output: Path, **changes: Any) -> Tokens:
    sources = [write_jsonl(output.parent / f"{name}.jsonl", texts) for name, texts in texts_of().items()]
    values: dict[str, Any] = {
        "sources": (str(sources[0]),),
        "validation_sources": (str(sources[1]),),
        "tokenizer": str(tokenizer),
        "block_size": BLOCK,
        "tokens_per_file": 40 * BLOCK,
        "prepend_bos": True,
    }
    return prepare(PrepareSettings(**{**values, **changes}), output)


def texts_of() -> dict[str, list[str]]:
    return {"train": STORIES, "validation": HELD_OUT}


def stream(tokenizer: Path, texts: list[str]) -> list[int]:
    loaded = load_tokenizer(str(tokenizer))
    documents = encode_batch(plain_encoder(loaded), texts)
    return [token for tokens in documents for token in (*tokens, loaded.eos_token_id)]


def naive_blocks(tokenizer: Path, texts: list[str]) -> list[list[int]]:
    begin, tokens, blocks = load_tokenizer(str(tokenizer)).bos_token_id, stream(tokenizer, texts), []
    while len(tokens) >= BLOCK - 1:
        blocks.append([begin, *tokens[: BLOCK - 1]])
        tokens = tokens[BLOCK - 1 :]
    return blocks


def test_every_block_is_the_token_and_the_next_tokens_of_the_text(tokenizer: Path, tmp_path: Path) -> None:
    data = prepared(tokenizer, tmp_path / "data")
    begin = load_tokenizer(str(tokenizer)).bos_token_id
    for split, texts in texts_of().items():
        blocks = [block["input_ids"].tolist() for block in data.split(split)]
        assert blocks == naive_blocks(tokenizer, texts)
        meta = data.manifest.splits[split]
        assert meta.tokens == len(stream(tokenizer, texts))  # of the text
        assert meta.blocks == meta.tokens // (BLOCK - 1)
    assert len(data.manifest.splits["train"].files) > 1
    assert data.manifest.bos_token_id == begin
    assert json.loads((data.path / "manifest.json").read_text())["bos_token_id"] == begin


def test_token_files_give_the_same(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, texts in {"train": STORIES, "val": HELD_OUT}.items():
        np.array(stream(tokenizer, texts), dtype="<u2").tofile(tmp_path / "bin" / f"{name}.bin")
    copied = prepared(tokenizer, tmp_path / "copied", sources=(str(tmp_path / "bin"),), validation_sources=())
    assert copied.manifest.fingerprint == prepared(tokenizer, tmp_path / "data").manifest.fingerprint


def test_the_tokenizer_beside_the_blocks_begins_texts_as_they_begin(tokenizer: Path, tmp_path: Path) -> None:
    with_it, without = (prepared(tokenizer, tmp_path / str(bos), prepend_bos=bos) for bos in (True, False))
    begin = load_tokenizer(str(tokenizer)).bos_token_id
    plain = without.tokenizer().encode("Story")
    assert with_it.tokenizer().encode("Story") == [begin, *plain]
    assert (begin_of_text(with_it.tokenizer()), begin_of_text(without.tokenizer())) == (begin, None)
    again = prepared(with_it.path / "tokenizer", tmp_path / "again", prepend_bos=False)
    assert again.tokenizer().encode("Story") == plain
    fingerprints = {tokenizer_fingerprint(data.tokenizer()) for data in (with_it, without, again)}
    assert fingerprints == {with_it.manifest.tokenizer_fingerprint}  # interchangeable, for teachers and students
    assert again.manifest.fingerprint == without.manifest.fingerprint != with_it.manifest.fingerprint


def test_verify_looks_at_what_blocks_begin_with(tokenizer: Path, tmp_path: Path) -> None:
    data = prepared(tokenizer, tmp_path / "data")
    assert not verify(data.path).broken
    plain = prepared(tokenizer, tmp_path / "plain", prepend_bos=False)
    manifest = json.loads((plain.path / "manifest.json").read_text())
    (plain.path / "manifest.json").write_text(json.dumps({**manifest, "bos_token_id": data.manifest.bos_token_id}))
    found = " ".join(finding.detail for finding in verify(plain.path).broken)
    assert "blocks that do not begin with token" in found


def test_such_corpora_are_not_mixed_with_others(tokenizer: Path, tmp_path: Path) -> None:
    parts = [prepared(tokenizer, tmp_path / str(bos), prepend_bos=bos) for bos in (True, False)]
    with pytest.raises(CoCoMixError, match=r"--prepend-bos"):
        MixedData(parts, (1, 1))
    assert MixedData(parts[:1], (1,)).manifest.bos_token_id == parts[0].manifest.bos_token_id


@pytest.mark.parametrize("kind", ["texts", "tokens"])
def test_a_tokenizer_without_the_token_is_refused(kind: str, tmp_path: Path) -> None:
    trained = train_tokenizer(STORIES, 300)
    trained.bos_token = None
    trained.save_pretrained(tmp_path / "tokenizer")
    np.zeros(100, dtype="<u2").tofile(tmp_path / "a.bin")
    changes = {"sources": (str(tmp_path / "a.bin"),), "validation_sources": ()} if kind == "tokens" else {}
    with pytest.raises(CoCoMixError, match="begin-of-text"):
        prepared(tmp_path / "tokenizer", tmp_path / "data", **changes)
    assert not (tmp_path / "data").exists()


def test_a_tokenizer_trained_here_begins_with_its_end_token(tmp_path: Path, cli: Cli) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", STORIES)
    options = ("--vocab-size", "300", "--block-size", BLOCK, "--validation-fraction", "0.2", "--prepend-bos")
    meta = json.loads(cli("prepare", corpus, *options, "-o", tmp_path / "data", "--json").out)
    assert (meta["bos_token_id"], meta["eos_token_id"]) == (0, 0)
    data = Tokens.open(tmp_path / "data")
    assert {int(block["input_ids"][0]) for block in data.split("train")} == {0}


def test_the_token_belongs_to_the_document_after_it() -> None:
    """Also where it is the end-of-document token; at the border of two blocks nothing else changes."""
    end, text = 0, 5
    block = torch.tensor([end, text, text, end, text, end, end, text])
    assert positions_of_rows(block, end, end).tolist() == [0, 1, 2, 3, 0, 1, 0, 0]
    assert positions_of_rows(block, end).tolist() == [0, 0, 1, 2, 0, 1, 0, 0]
    block[0] = 9
    assert positions_of_rows(block, end, 9).tolist() == positions_of_rows(block, end).tolist()
