"""Numbers per token, stored beside the tokens: memory-mapped columns of a split's shards, read block by block."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cocomix.errors import CoCoMixError

__all__ = ["ShardColumns"]


class ShardColumns:
    """The columns of one split. Picklable: loader workers map the files themselves.

    Args:
        paths: Arrow files of one record batch with columns of fixed-size lists; one row is one block.
        blocks: rows of each file.
    """

    def __init__(self, paths: Sequence[Path], blocks: Sequence[int]) -> None:
        self._paths = list(paths)
        self._ends = list(accumulate(blocks))
        self._columns: dict[int, Mapping[str, NDArray[Any]]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

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
            self._columns[shard] = _map_shard(self._paths[shard])
        first = index - (self._ends[shard - 1] if shard else 0)
        return self._columns[shard][column][first * width : (first + 1) * width]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}}


def _map_shard(path: Path) -> Mapping[str, NDArray[Any]]:
    """The columns of a shard as flat views of the memory-mapped file."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise CoCoMixError(f"the shard {path} cannot be read ({error}); make it again.") from error
    return {name: table[name].chunk(0).flatten().to_numpy(zero_copy_only=True) for name in table.column_names}
