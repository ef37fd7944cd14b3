"""The Parquet shards of a stream: found by pattern, here or on any file system fsspec knows, and read by their footers.

A footer says how many rows each row group has, so that any row group can be read by itself. Its hash stands for the
shard in the stream's fingerprint.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cocomix.artifacts import explained, file_system, url_of
from cocomix.data.documents import HUB_NAME
from cocomix.data.parquet import open_parquet
from cocomix.runtime.errors import CoCoMixError

__all__ = ["RowGroup", "Shard", "find_shards", "open_shard"]

_FOOTERS_AT_ONCE = 16
_TAIL_BYTES = 8  # of a Parquet file: the length of its footer, and PAR1
_HUB = "hf://"


@dataclass(frozen=True)
class RowGroup:
    """What is read at a time.

    Attributes:
        url: of its shard.
        number: within it.
        rows: documents, at least one.
    """

    url: str
    number: int
    rows: int


@dataclass(frozen=True)
class Shard:
    """One Parquet file.

    Attributes:
        url: as fsspec takes it; a path for files here.
        row_groups: those with rows, in order.
        sha256: of its footer.
    """

    url: str
    row_groups: tuple[RowGroup, ...]
    sha256: str


def find_shards(patterns: Sequence[str], text_column: str) -> tuple[Shard, ...]:
    """Find a stream's shards and read their footers.

    Args:
        patterns: Parquet files, folders that are searched for them, and patterns with `*`; paths or URLs. The order of
            patterns counts; what one finds is sorted by name.
        text_column: holds the text.

    Raises:
        CoCoMixError: a pattern finds nothing or holds access keys, a hub URL names no revision, a file is found twice,
            is no Parquet file, is truncated or lacks the column, or there is not one row.
    """
    urls = [url for pattern in patterns for url in _found(pattern)]
    for url in urls:
        if urls.count(url) > 1:
            raise CoCoMixError(f"the stream names {url} twice; name each shard once.")
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
        shards = tuple(threads.map(partial(_read_footer, text_column=text_column), urls))
    if not any(shard.row_groups for shard in shards):
        raise CoCoMixError(f"the stream {', '.join(patterns)} holds no documents: its shards have no row.")
    return shards


@contextmanager
def open_shard(url: str) -> Iterator[BinaryIO]:
    """Open a shard for reading bytes.

    Raises:
        CoCoMixError: it cannot be opened.
    """
    with explained(url):
        stream = fsspec.open(url, "rb").open()
    try:
        yield stream
    finally:
        stream.close()


def _found(pattern: str) -> list[str]:
    """The shards of one pattern, sorted."""
    _refuse_moving(pattern)
    url = url_of(pattern)
    files, path = (LocalFileSystem(), os.path.expanduser(pattern)) if url is None else file_system(url)
    with explained(pattern):
        if any(sign in path for sign in "*?["):
            paths = files.glob(path)
        elif files.isdir(path):
            paths = [inner for inner in files.find(path) if inner.endswith(".parquet")]
        else:
            paths = [path] if files.exists(path) else []
        shown = [files.unstrip_protocol(inner).removeprefix("file://") for inner in sorted(paths)]
    if not shown:
        raise CoCoMixError(f"the stream's {pattern} finds no file; give Parquet files, folders or patterns with *.")
    for url in shown:
        if not url.endswith(".parquet"):
            raise CoCoMixError(f"the stream's {url} is not a .parquet file; a stream is read from Parquet shards.")
    return shown


def _refuse_moving(pattern: str) -> None:
    """Refuse what is on the hub but not pinned: a stream that changes could not be gone on with."""
    name = pattern.removeprefix(_HUB).removeprefix("datasets/")
    if pattern.startswith(_HUB) and "@" not in pattern:
        owner = "/".join(name.split("/")[:2])
        raise CoCoMixError(
            f"the stream's {pattern} names no revision; pin a commit: hf://datasets/{owner}@COMMIT/PATTERN."
        )
    if HUB_NAME.fullmatch(pattern) and "/" in pattern and not os.path.exists(pattern) and "." not in pattern:
        raise CoCoMixError(
            f"the stream's {pattern} is no file or folder here; if it is a data set on the Hugging Face Hub, write "
            f"hf://datasets/{pattern}@COMMIT/**/*.parquet."
        )


def _read_footer(url: str, text_column: str) -> Shard:
    with open_shard(url) as stream, explained(url):
        file = open_parquet(url, stream, text_column)
        counts = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        size = stream.seek(-_TAIL_BYTES, os.SEEK_END)
        footer = int.from_bytes(stream.read(4), "little")
        stream.seek(size - footer)
        sha256 = hashlib.sha256(stream.read(footer)).hexdigest()
    row_groups = tuple(RowGroup(url, number, rows) for number, rows in enumerate(counts) if rows > 0)
    return Shard(url, row_groups, sha256)
