"""Token files of other code: the same blocks as from their texts, and what is refused."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cocomix.data import PrepareSettings, Tokens, prepare, token_files, units
from cocomix.data.tokenizer import encode_batch, plain_encoder, train_tokenizer
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer
from tests.command_line import Cli
from tests.data.conftest import story

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
    values = {
        "tokenizer": str(made_with),
        "block_size": BLOCK,
        "tokens_per_file": 30 * BLOCK,
        "validation_fraction": 0.2,
    }
    return PrepareSettings(sources=tuple(map(str, sources)), **(values | changes))


def counts(data: Tokens) -> dict[str, tuple[int, int, int]]:
    return {name: (split.documents, split.tokens, split.bytes) for name, split in data.manifest.splits.items()}


@pytest.mark.parametrize("fraction", [0.2, 1e-9])
def test_the_same_data_as_from_the_texts(
    tokenizer: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    """In one range and in many, with documents cut into pieces, and where the draw alone leaves nothing to validate."""
    encoded(tokenizer, STORIES).tofile(tmp_path / "all.bin")
    texts = prepare(settings(tokenizer, corpus, validation_fraction=fraction), tmp_path / "texts")
    for chunk, unit in ((token_files._CHUNK, units.MIN_UNIT_BYTES), (7, 200)):
        monkeypatch.setattr(token_files, "_CHUNK", chunk)
        monkeypatch.setattr(units, "MIN_UNIT_BYTES", unit)
        data = prepare(
            settings(tokenizer, tmp_path / "all.bin", validation_fraction=fraction), tmp_path / f"tokens{chunk}"
        )
        assert data.manifest.fingerprint == texts.manifest.fingerprint
        assert counts(data) == counts(texts)
        assert data.heldout_hashes().tolist() == texts.heldout_hashes().tolist()
        assert [(source.kind, source.documents) for source in data.manifest.sources] == [("tokens", 40)]


def test_a_folder_with_both_splits(cli: Cli, tokenizer: Path, tmp_path: Path) -> None:
    train, val = encoded(tokenizer, STORIES[:30]), encoded(tokenizer, STORIES[30:])
    (tmp_path / "both").mkdir()
    train.tofile(tmp_path / "both" / "train.bin")
    val.tofile(tmp_path / "both" / "val.bin")
    options = ("--tokenizer", tokenizer, "--block-size", BLOCK, "--tokens-per-file", 30 * BLOCK, "--json")
    said = cli("prepare", tmp_path / "both", *options, "--workers", 1, "-o", tmp_path / "out")
    assert json.loads(said.out)["splits"]["train"]["documents"] == 30
    data = Tokens.open(tmp_path / "out")
    for split, tokens in (("train", train), ("validation", val)):
        rows = data.split(split).rows(0, len(data.split(split)))
        assert np.array_equal(rows.ravel(), tokens[: rows.size])
        assert 0 <= len(tokens) - rows.size < BLOCK
    assert data.manifest.splits["validation"].bytes == sum(len(text.encode()) for text in STORIES[30:])
    sources = {"validation_sources": (str(tmp_path / "both" / "val.bin"),)}
    files = settings(tokenizer, tmp_path / "both" / "train.bin", **sources)
    assert prepare(files, tmp_path / "files").manifest.fingerprint == data.manifest.fingerprint


def test_tokens_stay_what_they_are(tokenizer: Path, tmp_path: Path) -> None:
    """Empty documents, and a last document without an end."""
    tokens = np.array([0, 5, 6, 0, 0, 0, 7, 8, 9, 10] * 8, dtype="<u2")
    tokens.tofile(tmp_path / "train.bin")
    np.array([4, 0] * 10, dtype="<u2").tofile(tmp_path / "val.bin")
    values = {"validation_sources": (str(tmp_path / "val.bin"),)}
    data = prepare(settings(tokenizer, tmp_path / "train.bin", **values), tmp_path / "out")
    assert data.split("train").rows(0, 10).ravel().tolist() == tokens.tolist()


# Formats of others --------------------------------------------------------------------------------------------------


def write_megatron(path: Path, documents: list[np.ndarray], dtype: str, code: int) -> None:
    """An indexed data set as Megatron-LM's IndexedDatasetBuilder writes it; each document has two sequences."""
    sequences = [part for tokens in documents for part in np.array_split(tokens, 2)]
    sizes = np.array([len(part) for part in sequences], dtype="<i4")
    np.concatenate(sequences).astype(dtype).tofile(path)
    with path.with_suffix(".idx").open("wb") as stream:
        stream.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sizes), len(documents) + 1))
        stream.write(sizes.tobytes())
        stream.write((np.concatenate([[0], np.cumsum(sizes)[:-1]]) * np.dtype(dtype).itemsize).astype("<i8").tobytes())
        stream.write(np.arange(0, 2 * len(documents) + 1, 2).astype("<i8").tobytes())


def write_format(kind: str, folder: Path, documents: list[np.ndarray]) -> Path:
    """The documents, which end with their end tokens, as another program keeps them."""
    flat = np.concatenate(documents)
    path = folder / {"datatrove": "a.ds", "olmo": "a.npy", "npy": "a.npy"}.get(kind, "a.bin")
    if kind in ("uint32", "int32", "int64", "uint64"):
        flat.astype(f"<{np.dtype(kind).str[1:]}").tofile(path)
    elif kind == "datatrove":
        flat.astype("<u2").tofile(path)
        np.cumsum([len(tokens) for tokens in documents]).astype("<u8").tofile(folder / "a.ds.index")
    elif kind in ("megatron16", "megatron32"):
        write_megatron(path, documents, *(("<u2", 8) if kind == "megatron16" else ("<i4", 4)))
    elif kind == "npy":
        np.save(path, flat.astype("<i4"))
    elif kind == "olmo":
        flat.astype("<u2").tofile(path)
    else:
        header = np.zeros(256, dtype="<i4")
        header[:3] = 20240520 if kind == "llmc16" else 20240801, 1, len(flat)
        path.write_bytes(header.tobytes() + flat.astype("<u2" if kind == "llmc16" else "<u4").tobytes())
    return path


KINDS = (
    "uint32", "int32", "int64", "uint64", "datatrove", "olmo", "npy", "megatron16", "megatron32", "llmc16", "llmc32",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_formats_of_others(tokenizer: Path, corpus: Path, tmp_path: Path, kind: str) -> None:
    documents = [encoded(tokenizer, [text]) for text in STORIES]
    path = write_format(kind, tmp_path, documents)
    texts = prepare(settings(tokenizer, corpus), tmp_path / "texts")
    data = prepare(settings(tokenizer, path), tmp_path / "out")
    assert data.manifest.fingerprint == texts.manifest.fingerprint
    assert counts(data) == counts(texts)


def test_documents_without_an_end_token_get_one_where_an_index_tells(tokenizer: Path, tmp_path: Path) -> None:
    for name, documents in (("a", [[5, 6], [7], [8, 9, 10]] * 8), ("b", [[4, 4, 4]] * 8)):
        np.concatenate([np.array(tokens, dtype="<u2") for tokens in documents]).tofile(tmp_path / f"{name}.ds")
        np.cumsum([len(tokens) for tokens in documents]).astype("<u8").tofile(tmp_path / f"{name}.ds.index")
    values = {"validation_sources": (str(tmp_path / "b.ds"),)}
    data = prepare(settings(tokenizer, tmp_path / "a.ds", **values), tmp_path / "out")
    assert data.split("train").rows(0, 1).tolist() == [[5, 6, 0, 7, 0, 8, 9, 10]]
    assert data.manifest.splits["train"].documents == 24


def large_tokenizer(folder: Path, size: int) -> Path:
    words = {f"w{number}": number for number in range(1, size)} | {"<e>": 0}
    backend = Tokenizer(models.WordLevel(words, unk_token="<e>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>", unk_token="<e>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["<u4", "<i8"])
def test_vocabularies_above_65536(tmp_path: Path, dtype: str) -> None:
    made_with = large_tokenizer(tmp_path / "tokenizer", 70_000)
    tokens = np.array([[69_999, 65_536, number, 0] for number in range(1, 41)]).ravel()
    tokens.astype(dtype).tofile(tmp_path / "all.bin")
    tokens[:80].astype(dtype).tofile(tmp_path / "val.bin")
    values = {"validation_sources": (str(tmp_path / "val.bin"),)}
    data = prepare(settings(made_with, tmp_path / "all.bin", **values), tmp_path / "out")
    assert data.dtype == np.dtype("<u4")
    assert data.split("train").rows(0, 20).ravel().tolist() == tokens.tolist()


def test_a_file_of_wide_tokens_is_not_read_as_narrow_ones(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.bin"
    encoded(tokenizer, STORIES).astype("<u4").tofile(path)
    with pytest.raises(CoCoMixError, match="uint32"):
        prepare(settings(tokenizer, path, token_dtype="uint16"), tmp_path / "out")
    np.array([1, -7, 3], dtype="<i4").tofile(path)
    with pytest.raises(CoCoMixError, match="-7 at place 1"):
        prepare(settings(tokenizer, path, token_dtype="int32"), tmp_path / "out")


def test_indexes_of_other_files_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    documents = [encoded(tokenizer, [text]) for text in STORIES]
    path = write_format("datatrove", tmp_path, documents)
    np.arange(1, 5, dtype="<u8").tofile(tmp_path / "a.ds.index")
    with pytest.raises(CoCoMixError, match=r"a\.ds\.index"):
        prepare(settings(tokenizer, path), tmp_path / "out")
    path = write_format("megatron16", tmp_path, documents)
    whole = path.with_suffix(".idx").read_bytes()
    for content, says in ((b"MMIDIDX", "no index"), (whole[:60], "belong"), (whole[:-8] + b"\xff" * 8, "damaged")):
        path.with_suffix(".idx").write_bytes(content)
        with pytest.raises(CoCoMixError, match=says):
            prepare(settings(tokenizer, path), tmp_path / "out")


def test_bytes_of_tokenizers_that_are_not_byte_level(tmp_path: Path) -> None:
    words = {"<e>": 0, "wörter": 1, "und": 2}
    backend = Tokenizer(models.WordLevel(words, unk_token="<e>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>", unk_token="<e>").save_pretrained(tmp_path / "t")
    np.array([1, 2, 0, 2, 1, 0] * 10, dtype="<u2").tofile(tmp_path / "all.bin")
    data = prepare(settings(tmp_path / "t", tmp_path / "all.bin"), tmp_path / "out")
    assert sum(split.bytes for split in data.manifest.splits.values()) == 20 * len("wörter und".encode())


def test_another_tokenizers_file_is_warned_of(
    tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.full(100, 5, dtype="<u2").tofile(tmp_path / "train.bin")
    np.full(100, 6, dtype="<u2").tofile(tmp_path / "val.bin")
    prepare(settings(tokenizer, tmp_path), tmp_path / "out")
    assert caplog.text.count("no end-of-document token") == 2


# What is refused -----------------------------------------------------------------------------------------------------


def test_files_that_hold_no_tokens(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.bin"
    for content, says in ((b"", "has 0 bytes"), (b"abc", "has 3 bytes, which are no uint16 tokens")):
        file.write_bytes(content)
        with pytest.raises(CoCoMixError, match=says):
            prepare(settings(tokenizer, file), tmp_path / "out")
    np.array([1, 2, 300, 4], dtype="<u2").tofile(file)
    with pytest.raises(CoCoMixError, match=r"token 300 .*place 2.*uint16"):
        prepare(settings(tokenizer, file), tmp_path / "out")
    np.save(tmp_path / "flags.npy", np.zeros((2, 2), dtype=bool))
    with pytest.raises(CoCoMixError, match=r"flags\.npy.*bool"):
        prepare(settings(tokenizer, tmp_path / "flags.npy"), tmp_path / "out")
    with pytest.raises(CoCoMixError, match=r"none\.bin"):
        prepare(settings(tokenizer, tmp_path / "none.bin"), tmp_path / "out")
    np.arange(1, 13, dtype="<u2").tofile(file)
    with pytest.raises(CoCoMixError, match="single document"):
        prepare(settings(tokenizer, file), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flags.npy", "train.bin"]


def test_settings_that_only_texts_have(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "all.bin"
    encoded(tokenizer, STORIES).tofile(file)
    with pytest.raises(CoCoMixError, match="--tokenizer"):
        prepare(settings(tokenizer, file, tokenizer=None, vocab_size=300), tmp_path / "out")
    for changes in ({"sources": (str(file), str(corpus))}, {"validation_sources": (str(corpus),)}):
        with pytest.raises(CoCoMixError, match="apart"):
            prepare(settings(tokenizer, file).model_copy(update=changes), tmp_path / "out")


def test_max_bytes_counts_the_text(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "all.bin"
    encoded(tokenizer, STORIES).tofile(file)
    data = prepare(settings(tokenizer, file, max_bytes=3000), tmp_path / "out")
    assert 3000 <= data.manifest.splits["train"].bytes < 3500
