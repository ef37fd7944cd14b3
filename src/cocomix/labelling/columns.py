"""Numbers per token, stored beside the tokens: memory-mapped columns of a split's shards, read block by block."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cocomix.artifacts.hashing import file_sha256
from cocomix.artifacts.remote import fetched
from cocomix.runtime.errors import CoCoMixError

__all__ = ["ShardColumns"]


class ShardColumns:
    """The columns of one split. Picklable: loader workers map the files themselves.

    Args:
        paths: Arrow files of one record batch with columns of fixed-size lists; one row is one block.
        blocks: rows of each file.
        sha256s: hash of each file, which one that is fetched from elsewhere must have.
    """

    def __init__(self, paths: Sequence[Path], blocks: Sequence[int], sha256s: Sequence[str]) -> None:
        self._paths = list(paths)
        self._sha256s = list(sha256s)
        self._ends = list(accumulate(blocks))
        self._columns: dict[int, Mapping[str, NDArray[Any]]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def fetch(self) -> None:
        """Have all files on this machine, if they are of a remote folder.

        Raises:
            CoCoMixError: one cannot be fetched, or is not what was written.
        """
        for shard in range(len(self._paths)):
            self._fetched(shard)

    def _fetched(self, shard: int) -> Path:
        return fetched(self._paths[shard], lambda file: file_sha256(file) == self._sha256s[shard])

    def row(self, index: int, column: str, width: int) -> NDArray[Any]:
        """One block's `width` numbers, a view of the file.

        Raises:
            IndexError: there is no such block.
            CoCoMixError: the shard cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        if shard not in self._columns:
            self._columns[shard] = _map_shard(self._fetched(shard))
        first = index - (self._ends[shard - 1] if shard else 0)
        return self._columns[shard][column][first * width : (first + 1) * width]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}}


def _map_shard(path: Path) -> Mapping[str, NDArray[Any]]:
    """The columns of a shard as flat views of the memory-mapped file."""
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        batch.validate()  # Arrow ends the process over a list that is longer than what it lists
        if not all(pa.types.is_fixed_size_list(field.type) for field in batch.schema):
            raise pa.ArrowInvalid("a column holds no lists")
        return {name: batch.column(name).flatten().to_numpy(zero_copy_only=True) for name in batch.schema.names}
    except (OSError, IndexError, pa.ArrowException) as error:
        raise CoCoMixError(f"the shard {path} cannot be read ({error}); make it again.") from error
