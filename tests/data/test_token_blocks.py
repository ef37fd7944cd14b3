import errno
import pickle
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cocomix.artifacts import Damaged, arrays
from cocomix.data import SplitMeta, TokenBlocks, Tokens, TokensFile, TokensManifest, id_dtype
from cocomix.runtime.errors import CoCoMixError


def write(
    output: Path, tokens: int, *, block_size: int = 4, blocks_per_file: int = 2, vocab_size: int = 1000
) -> Tokens:
    """Tokens 0, 1, 2, … modulo the vocabulary as one split."""
    blocks = tokens // block_size
    with Tokens.create(output, identity={}) as staging:
        files = []
        for number, first in enumerate(range(0, blocks, blocks_per_file)):
            name, last = f"train-{number:05d}.npy", min(blocks, first + blocks_per_file)
            flat = np.arange(first * block_size, last * block_size) % vocab_size
            np.save(staging.path / name, flat.astype(id_dtype(vocab_size)))
            files.append(TokensFile(name=name, blocks=last - first))
        split = SplitMeta(documents=1, tokens=tokens, bytes=0, blocks=blocks, files=tuple(files))
        numbers = {"vocab_size": vocab_size, "eos_token_id": 0, "block_size": block_size, "seed": 0, "invalid_utf8": 0}
        names = {"tokenizer_fingerprint": "", "tokenizer_name": "", "sources": (), "splits": {"train": split}}
        staging.finish(TokensManifest(**numbers, **names))
    return Tokens.open(output)


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return write(tmp_path / "data", 41)


def test_blocks_are_the_tokens_in_order(tokens: Tokens) -> None:
    blocks = tokens.split("train")
    assert len(blocks) == 10
    assert [row["input_ids"].tolist() for row in blocks] == np.arange(40).reshape(10, 4).tolist()
    assert blocks[0]["input_ids"].dtype == torch.int64
    for start, stop in ((0, 1), (1, 3), (0, 10), (3, 8), (9, 10)):
        assert np.array_equal(blocks.rows(start, stop), np.arange(start * 4, stop * 4).reshape(-1, 4))
    assert not blocks.rows(0, 2).flags.writeable


def test_indices_out_of_range(tokens: Tokens) -> None:
    for index in (10, -1):
        with pytest.raises(IndexError):
            tokens.split("train")[index]
    with pytest.raises(IndexError):
        tokens.split("train").rows(3, 11)


@pytest.mark.parametrize(("vocab_size", "expected"), [(2, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_the_largest_token_survives(tmp_path: Path, vocab_size: int, expected: str) -> None:
    assert id_dtype(vocab_size) == np.dtype(expected)
    blocks = write(tmp_path / "data", vocab_size * 4, blocks_per_file=10**6, vocab_size=vocab_size).split("train")
    assert blocks.rows(0, 1).dtype == np.dtype(expected)
    assert int(blocks.rows(0, len(blocks)).max()) == vocab_size - 1


def test_files_are_plain_arrays(tokens: Tokens) -> None:
    flat = np.load(tokens.path / "train-00001.npy", mmap_mode="r")
    assert flat.dtype == np.dtype("<u2")
    assert flat.tolist() == list(range(8, 16))


def test_shards_are_ranges_that_cross_no_file(tmp_path: Path) -> None:
    tokens = write(tmp_path / "data", 41, blocks_per_file=5)
    shards = tokens.shards("train", 2)
    found = [(shard.file.name, shard.start, shard.stop) for shard in shards]
    assert found == [
        ("train-00000.npy", 0, 2),
        ("train-00000.npy", 2, 4),
        ("train-00000.npy", 4, 5),
        ("train-00001.npy", 0, 2),
        ("train-00001.npy", 2, 4),
        ("train-00001.npy", 4, 5),
    ]
    read = np.concatenate([pickle.loads(pickle.dumps(shard)).read() for shard in shards])  # noqa: S301
    assert read.ravel().tolist() == list(range(40))


def test_pickles_without_tokens(tmp_path: Path) -> None:
    blocks = write(tmp_path / "data", 400_000, block_size=1000, blocks_per_file=100).split("train")
    assert blocks[399]["input_ids"].sum() == sum(range(1000))
    data = pickle.dumps(blocks)
    assert len(data) < 5000
    assert torch.equal(pickle.loads(data)[150]["input_ids"], blocks[150]["input_ids"])  # noqa: S301


def test_data_loader_workers(tokens: Tokens) -> None:
    loader = DataLoader(tokens.split("train"), batch_size=4, num_workers=1)
    assert torch.cat([batch["input_ids"] for batch in loader]).flatten().tolist() == list(range(40))


# Maps ---------------------------------------------------------------------------------------------------------------


def open_maps(folder: Path) -> int:
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts maps as Linux tells of them")
def test_few_files_are_mapped_at_once(tmp_path: Path) -> None:
    blocks = write(tmp_path / "data", 4 * 200, blocks_per_file=1).split("train")
    assert [int(row["input_ids"][0]) for row in blocks] == list(range(0, 800, 4))
    assert 0 < open_maps(tmp_path) <= arrays._OPEN_MAPS


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads what Linux tells of maps")
def test_only_what_is_read_here_and_there_is_not_read_ahead(tmp_path: Path) -> None:
    tokens = write(tmp_path / "data", 4)
    here_and_there, in_order = tokens.split("train", scattered=True), tokens.split("train")
    assert torch.equal(here_and_there[0]["input_ids"], in_order[0]["input_ids"])
    maps = Path("/proc/self/smaps").read_text().split("VmFlags: ")
    flags = [after.split("\n")[0].split() for before, after in pairwise(maps) if str(tmp_path) in before]
    assert sorted("rr" in found for found in flags) == [False, True]


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_want_of_maps_is_never_called_damage(tokens: Tokens, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise OSError(number, "no more of it")

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", fail)
        with pytest.raises(CoCoMixError, match=r"train-00000\.npy") as error:
            tokens.split("train")[0]
    assert not isinstance(error.value, Damaged)
    assert tokens.split("train")[0]["input_ids"].tolist() == [0, 1, 2, 3]  # the failure is not remembered


def test_want_of_files_before_the_first_use_is_not_damage(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is hashed when it is first used; that it cannot be opened then says nothing about it either."""

    def fail(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("cocomix.artifacts.artifact.file_sha256", fail)
    with pytest.raises(CoCoMixError, match="ulimit -n") as error:
        tokens.split("train")[0]
    assert not isinstance(error.value, Damaged)


def test_damaged_files_are_named(tokens: Tokens) -> None:
    path = tokens.path / "train-00001.npy"
    whole = path.read_bytes()
    for content in (whole[:-1], b"x" * len(whole), whole[:-8] + whole[-16:-8]):
        path.write_bytes(content)
        with pytest.raises(Damaged) as error:
            tokens.split("train")[2]
        assert error.value.file == "train-00001.npy"
    path.unlink()
    with pytest.raises(Damaged, match="missing"):
        tokens.split("train")[2]
    assert tokens.split("train")[0]["input_ids"].tolist() == [0, 1, 2, 3]


def test_another_corpus_at_the_same_path_is_not_the_old_one(tmp_path: Path) -> None:
    assert write(tmp_path / "data", 40).split("train")[1]["input_ids"].tolist() == [4, 5, 6, 7]
    shutil.rmtree(tmp_path / "data")
    assert write(tmp_path / "data", 40, vocab_size=5).split("train")[1]["input_ids"].tolist() == [4, 0, 1, 2]


def test_blocks_of_several_corpora(tmp_path: Path) -> None:
    parts = [write(tmp_path / str(number), 12, vocab_size=size) for number, size in enumerate((100, 7))]
    files = [(part, file) for part in parts for file in part.manifest.splits["train"].files]
    counts = SplitMeta(documents=2, tokens=24, bytes=0, blocks=6, files=tuple(file for _, file in files))
    joined = TokenBlocks(files, counts, 4)
    assert joined.rows(2, 4).tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert joined[5]["input_ids"].tolist() == [1, 2, 3, 4]
