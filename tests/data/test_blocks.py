import pickle
from errno import ENOSPC
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cocomix.data import blocks as blocks_module
from cocomix.data.blocks import BlockWriter, SplitMeta, TokenBlocks, TokenShard, token_dtype
from cocomix.runtime.errors import CoCoMixError


def write(folder: Path, tokens: list[list[int]], *, block_size: int, per_shard: int, vocab: int = 1000) -> TokenBlocks:
    dtype = token_dtype(vocab)
    writer = BlockWriter(folder, block_size=block_size, blocks_per_shard=per_shard, dtype=dtype)
    for document in tokens:
        writer.add(document)
    metas = writer.close()
    shards = [
        TokenShard(
            folder / f"{m.name}.arrow",
            f"train/{m.name}",
            num_blocks=m.blocks,
            block_size=block_size,
            dtype=dtype,
            sha256=m.sha256,
        )
        for m in metas
    ]
    blocks = sum(m.blocks for m in metas)
    split = SplitMeta(documents=len(tokens), tokens=writer.tokens, bytes=0, blocks=blocks, shards=metas)
    return TokenBlocks(shards, split, block_size)


@given(
    documents=st.lists(st.lists(st.integers(0, 999), max_size=40), max_size=12),
    block_size=st.integers(2, 7),
    per_shard=st.integers(1, 4),
)
def test_blocks_are_the_tokens_in_order(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], block_size: int, per_shard: int
) -> None:
    blocks = write(tmp_path_factory.mktemp("d"), documents, block_size=block_size, per_shard=per_shard)
    flat = [token for document in documents for token in document]
    assert blocks.meta.tokens == len(flat)
    assert len(blocks) == len(flat) // block_size
    rows = [row["input_ids"].tolist() for row in blocks]
    assert rows == [flat[i * block_size : (i + 1) * block_size] for i in range(len(blocks))]
    assert [shard.num_blocks for shard in blocks.shards[:-1]] == [per_shard] * (len(blocks.shards) - 1)


@pytest.mark.parametrize(("vocab", "expected"), [(2, np.uint16), (65_536, np.uint16), (65_537, np.int32)])
def test_the_largest_token_survives(tmp_path: Path, vocab: int, expected: type) -> None:
    blocks = write(tmp_path, [[vocab - 1] * 4], block_size=4, per_shard=1, vocab=vocab)
    assert blocks.shards[0].read().dtype == expected
    item = blocks[0]["input_ids"]
    assert item.dtype == torch.int64
    assert item.tolist() == [vocab - 1] * 4


def test_items_are_copies_and_shards_are_read_only_views(tmp_path: Path) -> None:
    blocks = write(tmp_path, [list(range(12))], block_size=4, per_shard=2)
    blocks[0]["input_ids"].zero_()
    assert blocks[0]["input_ids"].tolist() == [0, 1, 2, 3]
    array = blocks.shards[0].read()
    assert array.shape == (2, 4)
    assert not array.flags.writeable
    assert not array.flags.owndata
    assert blocks.shards[1].name == "train/00001"


def test_indices_out_of_range(tmp_path: Path) -> None:
    blocks = write(tmp_path, [list(range(12))], block_size=4, per_shard=2)
    for index in (3, -1):
        with pytest.raises(IndexError):
            blocks[index]


def test_pickles_without_the_memory_map(tmp_path: Path) -> None:
    blocks = write(tmp_path, [[1] * 200_000], block_size=1000, per_shard=100)
    assert blocks[150]["input_ids"].sum() == 1000
    data = pickle.dumps(blocks)
    assert len(data) < 3000
    assert torch.equal(pickle.loads(data)[150]["input_ids"], blocks[150]["input_ids"])  # noqa: S301


def test_data_loader_workers(tmp_path: Path) -> None:
    blocks = write(tmp_path, [list(range(64))], block_size=4, per_shard=3)
    loader = DataLoader(blocks, batch_size=4, num_workers=1)
    assert torch.cat([batch["input_ids"] for batch in loader]).flatten().tolist() == list(range(64))


def test_datasets_reads_a_shard(tmp_path: Path) -> None:
    blocks = write(tmp_path, [list(range(12))], block_size=4, per_shard=3)
    assert datasets.Dataset.from_file(str(blocks.shards[0].path))[1]["input_ids"] == [4, 5, 6, 7]


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    blocks = write(tmp_path, [list(range(4000))], block_size=4, per_shard=500)
    shard = blocks.shards[1]
    whole = shard.path.read_bytes()
    shard.path.write_bytes(whole[:1000])
    with pytest.raises(CoCoMixError, match=r"00001\.arrow is truncated"):
        shard.read()
    shard.path.write_bytes(b"x" * len(whole))
    with pytest.raises(CoCoMixError, match=r"00001\.arrow is damaged"):
        shard.read()
    other = write(tmp_path / "other", [list(range(8000))], block_size=8, per_shard=500)
    shard.path.write_bytes(other.shards[0].path.read_bytes())
    with pytest.raises(CoCoMixError, match=r"00001\.arrow does not hold what meta\.json says"):
        shard.read()
    shard.path.unlink()
    with pytest.raises(CoCoMixError, match=r"00001\.arrow is missing"):
        shard.read()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_the_system_s_own_error() -> None:
    with pytest.raises(OSError, match="No space left") as error:
        blocks_module._write_shard(Path("/dev/full"), np.arange(400_000, dtype=np.int32), 8)
    assert error.value.errno == ENOSPC
