"""Token files of other code: the same blocks as from their texts, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cocomix.data import PreparedData, PrepareSettings, prepare, token_files
from cocomix.data.tokenizer import encode_batch, plain_encoder, train_tokenizer
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer
from tests.command_line import Cli
from tests.data.conftest import RecordingReporter, story

BLOCK = 8
STORIES = [story(number) for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(STORIES, 300).save_pretrained(folder)
    return folder


def encoded(tokenizer: Path, texts: list[str]) -> np.ndarray:
    """Documents, each followed by the end token, as nanoGPT and the released code write them."""
    loaded = load_tokenizer(str(tokenizer))
    documents = encode_batch(plain_encoder(loaded), texts)
    return np.array([token for tokens in documents for token in (*tokens, loaded.eos_token_id)], dtype="<u2")


def settings(made_with: Path, *sources: Path, **changes: object) -> PrepareSettings:
    values = {"tokenizer": str(made_with), "block_size": BLOCK, "blocks_per_shard": 30, "validation_fraction": 0.2}
    return PrepareSettings(sources=tuple(map(str, sources)), **(values | changes))


def counts(data: PreparedData) -> dict[str, tuple[int, int, int]]:
    return {name: (split.documents, split.tokens, split.bytes) for name, split in data.meta.splits.items()}


@pytest.mark.parametrize("fraction", [0.2, 1e-9])
def test_the_same_data_as_from_the_texts(
    tokenizer: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    """Drawn from one file, with documents cut into pieces, and where the draw alone leaves nothing to validate."""
    encoded(tokenizer, STORIES).tofile(tmp_path / "all.bin")
    texts = prepare(settings(tokenizer, corpus, validation_fraction=fraction), tmp_path / "texts")
    for chunk in (token_files._CHUNK, 7):
        monkeypatch.setattr(token_files, "_CHUNK", chunk)
        data = prepare(
            settings(tokenizer, tmp_path / "all.bin", validation_fraction=fraction), tmp_path / f"tokens{chunk}"
        )
        assert data.meta.fingerprint == texts.meta.fingerprint
        assert counts(data) == counts(texts)
        assert [(source.kind, source.documents) for source in data.meta.sources] == [("tokens", 40)]


def test_a_folder_with_both_splits(cli: Cli, tokenizer: Path, tmp_path: Path) -> None:
    train, val = encoded(tokenizer, STORIES[:30]), encoded(tokenizer, STORIES[30:])
    train.tofile(tmp_path / "train.bin")
    val.tofile(tmp_path / "val.bin")
    options = ("--tokenizer", tokenizer, "--block-size", BLOCK, "--blocks-per-shard", 30, "--json")
    said = cli("prepare", tmp_path, *options, "-o", tmp_path / "out")
    assert json.loads(said.out)["splits"]["train"]["documents"] == 30
    data = PreparedData.open(tmp_path / "out")
    for split, tokens in (("train", train), ("validation", val)):
        rows = np.concatenate([shard.read() for shard in data.split(split).shards])
        assert np.array_equal(rows.ravel(), tokens[: rows.size])
        assert 0 <= len(tokens) - rows.size < BLOCK
    assert data.meta.splits["validation"].bytes == sum(len(text.encode()) for text in STORIES[30:])
    files = settings(tokenizer, tmp_path / "train.bin", validation_sources=(str(tmp_path / "val.bin"),))
    assert prepare(files, tmp_path / "files").meta.fingerprint == data.meta.fingerprint


def test_bytes_of_tokenizers_that_are_not_byte_level(tmp_path: Path) -> None:
    words = {"<e>": 0, "wörter": 1, "und": 2}
    backend = Tokenizer(models.WordLevel(words, unk_token="<e>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>", unk_token="<e>").save_pretrained(tmp_path / "t")
    np.array([1, 2, 0] * 20, dtype="<u2").tofile(tmp_path / "all.bin")
    data = prepare(settings(tmp_path / "t", tmp_path / "all.bin"), tmp_path / "out")
    assert sum(split.bytes for split in data.meta.splits.values()) == 20 * len("wörter und".encode())


def test_another_tokenizers_file_is_warned_of(tokenizer: Path, tmp_path: Path, reporter: RecordingReporter) -> None:
    np.full(100, 5, dtype="<u2").tofile(tmp_path / "train.bin")
    np.full(100, 6, dtype="<u2").tofile(tmp_path / "val.bin")
    prepare(settings(tokenizer, tmp_path), tmp_path / "out", reporter)
    assert ["no end-of-document token" in warning for warning in reporter.warned] == [True, True]
    assert reporter.bars[0]["done"] == pytest.approx(reporter.bars[0]["total"])


# What is refused -----------------------------------------------------------------------------------------------------


def test_files_that_hold_no_tokens(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.bin"
    for content, says in ((b"", "has 0 bytes"), (b"abc", "has 3 bytes, which are no uint16 tokens")):
        file.write_bytes(content)
        with pytest.raises(CoCoMixError, match=says):
            prepare(settings(tokenizer, file), tmp_path / "out")
    np.array([1, 2, 300, 4], dtype="<u2").tofile(file)
    with pytest.raises(CoCoMixError, match=r"holds token 300 at place 2, and the tokenizer .* has 300 tokens"):
        prepare(settings(tokenizer, file), tmp_path / "out")
    with pytest.raises(CoCoMixError, match=r"cannot read .*none\.bin: No such file"):
        prepare(settings(tokenizer, tmp_path / "none.bin"), tmp_path / "out")
    np.arange(1, 13, dtype="<u2").tofile(file)
    with pytest.raises(CoCoMixError, match="the validation split has 0 tokens, less than one block"):
        prepare(settings(tokenizer, file), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.bin"]


def test_settings_that_only_texts_have(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "all.bin"
    encoded(tokenizer, STORIES).tofile(file)
    for changes in ({"tokenizer": None, "vocab_size": 300}, {"max_bytes": 10}):
        with pytest.raises(CoCoMixError, match="token files need --tokenizer"):
            prepare(settings(tokenizer, file, **changes), tmp_path / "out")
    with pytest.raises(CoCoMixError, match=r"corpus.jsonl is no token file \(.bin\)"):
        prepare(settings(tokenizer, file, corpus), tmp_path / "out")
    with pytest.raises(CoCoMixError, match="name one with --validation"):
        prepare(settings(tokenizer, file, validation_sources=(str(corpus),)), tmp_path / "out")
