"""An unfinished folder of arrays: parts of token files, each written whole, and files joined from them."""

import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from cocomix.artifacts import written_aside

if TYPE_CHECKING:
    from cocomix.data import TokenShard

Arrays = Mapping[str, NDArray[Any]]  # what is stored of some blocks: arrays [blocks, …] by name

PARTS = "parts"  # folder of the parts within the unfinished folder


class DamagedPart(Exception):
    """A part cannot be read or is not what was written.

    Attributes:
        part: its file.
    """

    def __init__(self, part: Path) -> None:
        super().__init__(str(part))
        self.part = part


@dataclass(frozen=True)
class PartFolder:
    """Where the arrays of shards go; see `cocomix.labelling.map_shards` for the files."""

    path: Path  # the unfinished folder
    columns: Mapping[str, str]  # the arrays that are kept, each with its name among those that are computed

    @classmethod
    def of(cls, path: Path, names: Iterable[str]) -> Self:
        """A folder that keeps these arrays under the names that they have."""
        return cls(path, {name: name for name in names})

    def part(self, shard: "TokenShard") -> Path:
        """The file of a shard's arrays."""
        return self.path / PARTS / file_of(shard) / f"{shard.start:08d}-{shard.stop:08d}.npz"

    def holds(self, shard: "TokenShard") -> bool:
        """Whether a shard's arrays are there, in a part of their own or joined with the others of its token file."""
        return self.part(shard).exists() or self.is_joined(file_of(shard))

    def is_joined(self, file: str) -> bool:
        """Whether all arrays of a token file are joined."""
        return all(self._column(file, column).exists() for column in self.columns)

    def write(self, shard: "TokenShard", arrays: Arrays) -> None:
        """Keep what was computed of a shard, unless it is there already."""
        if not self.holds(shard):
            _write_part(self.part(shard), {name: arrays[source] for name, source in self.columns.items()})

    def join(self, file: str, shards: Sequence["TokenShard"]) -> None:
        """Join the parts of a token file, if all are there and no other process is joining them.

        Args:
            shards: of the token file, in order.

        Raises:
            DamagedPart: one could not be read and was removed.
        """
        if self.is_joined(file) or not all(self.part(shard).exists() for shard in shards):
            return
        lock = FileLock(self.path / PARTS / f"{file}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return
        try:
            if not self.is_joined(file):
                parts = [self.part(shard) for shard in shards]
                for column in self.columns:
                    _join_column(self._column(file, column), parts, column, shards[-1].stop)
            shutil.rmtree(self.path / PARTS / file, ignore_errors=True)
        except DamagedPart as error:
            error.part.unlink()  # so that it is computed again
            raise
        finally:
            lock.release()

    def _column(self, file: str, column: str) -> Path:
        return self.path / f"{file}.{column}.npy"


def file_of(shard: "TokenShard") -> str:
    """The name of a shard's token file, without its ending."""
    return shard.file.name.removesuffix(".npy")


def _write_part(path: Path, arrays: Arrays) -> None:
    with written_aside(path) as aside, aside.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # uncompressed, with a checksum of every array


def _read_part(part: Path, column: str) -> NDArray[Any]:
    try:
        with np.load(part) as stored:  # a checksum that differs is a BadZipFile
            array: NDArray[Any] = stored[column]
            return array
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise DamagedPart(part) from error


def _join_column(path: Path, parts: Sequence[Path], column: str, blocks: int) -> None:
    """Write one array of all parts, one after the other, as a `.npy` file; memory holds one part's.

    Raises:
        DamagedPart: one cannot be read.
    """
    with written_aside(path) as aside, aside.open("wb") as stream:
        for number, part in enumerate(parts):
            array = _read_part(part, column)
            if number == 0:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": (blocks, *array.shape[1:])}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(np.ascontiguousarray(array).data)
