"""Packing the tokens of all units, in the order of the input, into the blocks of both splits.

Which file holds which tokens follows from the units' rows alone. So every file is written by itself, in any process,
and its bytes depend neither on how many there are nor on how the work was interrupted.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cocomix.artifacts import FileEntry, file_entry, written_aside
from cocomix.data.splits import VALIDATION, Member

_CHUNK_TOKENS = 2**20


@dataclass(frozen=True)
class BlockShape:
    """Tokens a block, the token each begins with (`None`: a document's), and tokens a file at most."""

    block_size: int
    bos_token_id: int | None
    tokens_per_file: int

    @property
    def taken(self) -> int:
        """Tokens of documents in a block."""
        return self.block_size - (self.bos_token_id is not None)

    @property
    def blocks_per_file(self) -> int:
        return max(1, self.tokens_per_file // self.block_size)


@dataclass(frozen=True)
class FilePlan:
    """A file of blocks to be written."""

    name: str
    split: str  # whose blocks it holds
    blocks: int  # how many
    skip: int  # tokens of the first member that earlier files hold
    members: tuple[Member, ...]  # units with tokens of the split, from the first one needed to the last


def file_plans(split: str, members: Sequence[Member], tokens: Sequence[int], shape: BlockShape) -> list[FilePlan]:
    """Plan the files of a split, of which the units hold `tokens`; the last ones, which fill no block, go nowhere."""
    ends = np.cumsum(tokens)
    blocks = int(ends[-1]) // shape.taken if len(ends) else 0
    plans = []
    for number, first in enumerate(range(0, blocks, shape.blocks_per_file)):
        last = min(blocks, first + shape.blocks_per_file)
        start, stop = first * shape.taken, last * shape.taken
        begin = int(np.searchsorted(ends, start, side="right"))
        end = int(np.searchsorted(ends, stop, side="left")) + 1
        skip = start - int(ends[begin] - tokens[begin])
        plans.append(FilePlan(f"{split}-{number:05d}.npy", split, last - first, skip, tuple(members[begin:end])))
    return plans


def pack_file(
    folder: Path, shape: BlockShape, plan: FilePlan, advance: Callable[[float], None], stop: Callable[[], None]
) -> FileEntry:
    """Write a file of blocks, whole or not at all, unless it is there; `advance` is called with its tokens."""
    dtype = plan.members[0].log.dtype
    path, digest, size = folder / plan.name, hashlib.sha256(), 0
    if path.exists():
        advance(plan.blocks * shape.block_size)
        return file_entry(path)
    with written_aside(path) as aside, aside.open("wb") as stream:
        for data in chain([_header(plan.blocks * shape.block_size, dtype)], _blocks(plan, shape, dtype)):
            stop()
            stream.write(data)
            digest.update(data)
            size += len(data)
            advance(len(data) / dtype.itemsize)
    return FileEntry(size=size, sha256=digest.hexdigest())


def _header(tokens: int, dtype: np.dtype[Any]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (tokens,)}
    )
    return header.getvalue()


def _blocks(plan: FilePlan, shape: BlockShape, dtype: np.dtype[Any]) -> Iterator[bytes]:
    """The blocks of a file, some at a time."""
    left, skip, filled = plan.blocks * shape.taken, plan.skip, 0
    chunk = np.empty(max(1, _CHUNK_TOKENS // shape.taken) * shape.taken, dtype=dtype)
    for run in (run for member in plan.members for run in _runs(member, plan.split)):
        run, skip = run[skip:], max(0, skip - len(run))
        run = run[:left]
        left -= len(run)
        while len(run):
            part = run[: len(chunk) - filled]
            chunk[filled : filled + len(part)] = part
            filled, run = filled + len(part), run[len(part) :]
            if filled == len(chunk):
                yield _with_begin(chunk, shape).tobytes()
                filled = 0
    if filled:
        yield _with_begin(chunk[:filled], shape).tobytes()


def _runs(member: Member, split: str) -> Iterator[NDArray[Any]]:
    """The tokens of a unit that go to a split, neighbouring documents together."""
    documents, tokens = member.documents(), member.log.tokens()
    taken = np.concatenate([[False], documents.validates == (split == VALIDATION), [False]])
    change, edges = np.diff(taken.astype(np.int8)), np.concatenate([[0], documents.ends])
    for start, stop in zip(np.flatnonzero(change == 1), np.flatnonzero(change == -1), strict=True):
        yield tokens[edges[start] : edges[stop]]


def _with_begin(tokens: NDArray[Any], shape: BlockShape) -> NDArray[Any]:
    if shape.bos_token_id is None:
        return tokens
    return np.insert(tokens.reshape(-1, shape.taken), 0, shape.bos_token_id, axis=1)
