"""The same token blocks in every library's own format, and text for those that tokenise while reading."""

import json
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["BIG", "SMALL", "Size", "blocks_of_shard", "write_corpus"]

_VOCABULARY = 4096
_TRAINING_BYTES = 2_000_000
_PARQUET_FILES = 128
_DOCUMENT = 4_000  # characters, at most
_BYTES_PER_TOKEN = 3.4  # of this tokenizer on Python sources, a little too high: rather too much text than too little


@dataclass(frozen=True)
class Size:
    """A corpus.

    Attributes:
        name: of its folder.
        block: tokens per block.
        shards: files.
        shard_blocks: blocks per file.
    """

    name: str
    block: int
    shards: int
    shard_blocks: int

    @property
    def blocks(self) -> int:
        """Of all shards."""
        return self.shards * self.shard_blocks


SMALL = Size("small", 128, 16, 64)
BIG = Size("big", 1024, 32, 256)


def blocks_of_shard(shard: int, size: Size) -> np.ndarray:
    """Random tokens; the first of a block is its number. uint16 [shard_blocks, block]"""
    tokens = np.random.default_rng(shard).integers(0, 50_000, (size.shard_blocks, size.block), dtype=np.uint16)
    tokens[:, 0] = np.arange(shard * size.shard_blocks, (shard + 1) * size.shard_blocks)
    return tokens


def write_corpus(size: Size, folder: Path) -> None:
    """Write every format, if it is not there."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write_mds(size, folder / "mds")
    _write_litdata(size, folder / "litdata")
    _write_parquet(size, folder / "parquet")
    _write_flat(size, folder / "flat")
    _write_text(size, folder / "text")
    (folder / "done").touch()


def _write_mds(size: Size, folder: Path) -> None:
    from benchmarks.streaming.candidates import import_mosaic

    streaming = import_mosaic()
    limit = size.shard_blocks * (size.block * 2 + 8)
    with streaming.MDSWriter(
        out=str(folder), columns={"tokens": f"ndarray:uint16:{size.block}"}, size_limit=limit
    ) as writer:
        for shard in range(size.shards):
            for tokens in blocks_of_shard(shard, size):
                writer.write({"tokens": tokens})


def _litdata_shard(shard: int, size: Size) -> Iterator[np.ndarray]:
    yield from blocks_of_shard(shard, size)


def _write_litdata(size: Size, folder: Path) -> None:
    import litdata

    litdata.optimize(
        fn=partial(_litdata_shard, size=size),
        inputs=list(range(size.shards)),
        output_dir=str(folder),
        chunk_size=size.shard_blocks * size.block,
        item_loader=litdata.TokensLoader(block_size=size.block),
        num_workers=1,
    )


def _write_parquet(size: Size, folder: Path) -> None:
    """More files than elsewhere: `datasets` cannot load a state where a worker has fewer than ten."""
    folder.mkdir()
    blocks = np.concatenate([blocks_of_shard(shard, size) for shard in range(size.shards)])
    for number, part in enumerate(np.array_split(blocks, _PARQUET_FILES)):
        tokens = pa.array(list(part), type=pa.list_(pa.uint16()))
        pq.write_table(pa.table({"tokens": tokens}), folder / f"{number:05d}.parquet", row_group_size=64)


def _write_flat(size: Size, folder: Path) -> None:
    folder.mkdir()
    files = []
    for shard in range(size.shards):
        name = f"tokens-{shard:05d}.bin"
        blocks_of_shard(shard, size).astype("<u2").tofile(folder / name)
        files.append({"name": name, "blocks": size.shard_blocks})
    (folder / "manifest.json").write_text(json.dumps({"block_size": size.block, "files": files}))


def _write_text(size: Size, folder: Path) -> None:
    """Python sources of this environment in Parquet, two row groups a file, and a BPE tokenizer trained on them."""
    folder.mkdir()
    wanted = int(size.blocks * size.block * _BYTES_PER_TOKEN * 1.1)
    texts, found = [], 0
    roots = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    for path in (path for root in roots for path in sorted(root.rglob("*.py"))):
        text = path.read_text(encoding="utf-8", errors="replace")
        parts = [text[at : at + _DOCUMENT] for at in range(0, len(text), _DOCUMENT)]
        texts += [part for part in parts if part.strip()]
        found += len(text)
        if found > wanted:
            break
    if found < wanted:
        print(f"text: {found} of {wanted} characters", file=sys.stderr)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts[: max(1, len(texts) * _TRAINING_BYTES // max(found, _TRAINING_BYTES))], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    for shard in range(size.shards):
        part = texts[shard :: size.shards]
        table = pa.table({"text": pa.array(part, pa.string())})
        pq.write_table(table, folder / f"{shard:05d}.parquet", row_group_size=max(1, -(-len(part) // 2)))
