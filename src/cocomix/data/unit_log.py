"""The log of a unit that is being encoded: its tokens and documents, batch by batch."""

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

ROW = np.dtype([("end", "<u8"), ("hash", "<u8"), ("bytes", "<u4"), ("invalid", "<u4"), ("last", "?")])
"""About a `Part`; `end`: tokens of the unit up to its end."""


class UnitLog:
    """Tokens and rows of a unit on the disk, appended while it is encoded.

    One process at a time writes it; another waits, as after the kill of a command whose workers are still ending.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.name, self.dtype = path.name, dtype
        self.tokens_path, self._rows_path = path.with_suffix(".tokens"), path.with_suffix(".rows")
        self._unfinished_path = path.with_suffix(".unfinished")

    @property
    def finished(self) -> bool:
        """Whether the unit is encoded."""
        return self._rows_path.exists()

    def rows(self) -> NDArray[Any]:
        """About the parts that are kept, `ROW`."""
        path = self._rows_path if self.finished else self._unfinished_path
        return np.fromfile(path, dtype=ROW) if path.exists() else np.empty(0, dtype=ROW)

    def tokens(self) -> NDArray[Any]:
        """The tokens, as a memory map."""
        if self.tokens_path.stat().st_size == 0:
            return np.empty(0, dtype=self.dtype)
        return np.memmap(self.tokens_path, dtype=self.dtype, mode="r")

    def __enter__(self) -> "UnitLog":
        self._tokens: IO[bytes] = self.tokens_path.open("ab")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._tokens, fcntl.LOCK_EX)
        self._rows: IO[bytes] | None = None
        if not self.finished:  # cut off what a kill, or a failure of power, left of the last parts
            self._rows = self._unfinished_path.open("ab")
            rows = self.rows()
            whole = int(np.searchsorted(rows["end"], self._tokens.tell() // self.dtype.itemsize, side="right"))
            self.kept, self.end = whole, int(rows["end"][whole - 1]) if whole else 0
            self._tokens.truncate(self.end * self.dtype.itemsize)
            os.truncate(self._unfinished_path, whole * ROW.itemsize)
        return self

    def append(self, tokens: Sequence[NDArray[Any]], rows: list[tuple[Any, ...]]) -> None:
        """Add parts: tokens of each, and its `ROW` but for `end`."""
        assert self._rows is not None
        ends = self.end + np.cumsum([len(part) for part in tokens])
        self._tokens.write(b"".join(part.tobytes() for part in tokens))
        self._tokens.flush()
        os.fsync(self._tokens.fileno())
        self._rows.write(np.array([(end, *row) for end, row in zip(ends, rows, strict=True)], dtype=ROW).tobytes())
        self._rows.flush()
        self.end = int(ends[-1])

    def finish(self) -> None:
        """Make it a finished one."""
        assert self._rows is not None
        os.fsync(self._rows.fileno())
        self._unfinished_path.rename(self._rows_path)

    def __exit__(self, *error: object) -> None:
        self._tokens.close()
        if self._rows is not None:
            self._rows.close()
