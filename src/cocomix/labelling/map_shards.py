"""`map_shards`: apply a function to ranges of token blocks and store the arrays it returns, resumably.

A *shard* is a range of blocks of one token file. Its result is written as one *part*, which appears by a rename, so
that a kill at any moment leaves whole parts and nothing that looks like one. When a token file has all its parts, they
are joined into the arrays that are kept:

    FOLDER/parts/train-00000/00000000-00001024.npz   the arrays of blocks 0 to 1,023 of the token file train-00000
    FOLDER/train-00000.ids.npy                       the array `ids` of all its blocks

One function may fill several folders, each of which keeps some of its arrays; a shard counts as computed when all of
them hold it, so that what a kill left in one folder alone is computed again and written where it is missing.

A shard is claimed by a file lock, which the system releases when its holder dies. So several jobs may work on one
folder in any order, at once and more than once, and a job that is started again does only what is left.
"""

import logging
import shutil
import time
import zipfile
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from cocomix.artifacts import written_aside
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    import torch

    from cocomix.data import TokenShard

logger = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]  # what is stored of some blocks: arrays [blocks, …] by name
PARTS = "parts"  # folder of the parts within the unfinished folder
_MOST_FAILED = 100  # shards that failed for good, after which no more are begun: the cause is not in the shards then


class DamagedPart(Exception):
    """The file `part` of a part cannot be read or is not what was written."""

    def __init__(self, part: Path) -> None:
        super().__init__(str(part))
        self.part = part


@dataclass(frozen=True)
class PartFolder:
    """Where the arrays of shards go; see `cocomix.labelling.map_shards` for the files."""

    path: Path  # the unfinished folder
    columns: Mapping[str, str]  # the arrays that are kept, each with its name among those that are computed

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
        """Join the parts of a token file, if all are there and nobody else is at it; a `DamagedPart` is removed."""
        if self.is_joined(file) or not all(self.part(shard).exists() for shard in shards):
            return
        with suppress(Timeout), FileLock(self.path / PARTS / f"{file}.lock").acquire(blocking=False):
            if not self.is_joined(file):
                parts = [self.part(shard) for shard in shards]
                for column in self.columns:
                    _join_column(self._column(file, column), parts, column, shards[-1].stop)
            shutil.rmtree(self.path / PARTS / file, ignore_errors=True)

    def _column(self, file: str, column: str) -> Path:
        return self.path / f"{file}.{column}.npy"


def file_of(shard: "TokenShard") -> str:
    """The name of a shard's token file, without its ending."""
    return shard.file.name.removesuffix(".npy")


def _write_part(path: Path, arrays: Arrays) -> None:
    with written_aside(path) as aside, aside.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # uncompressed, with a checksum of every array


def _join_column(path: Path, parts: Sequence[Path], column: str, blocks: int) -> None:
    """Write one array of all parts, one after the other, as a `.npy` file; memory holds one part's.

    A part that cannot be read is removed and told of as `DamagedPart`.
    """
    with written_aside(path) as aside, aside.open("wb") as stream:
        for number, part in enumerate(parts):
            try:
                with np.load(part) as stored:  # a checksum that differs is a BadZipFile
                    array = stored[column]
            except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
                part.unlink()  # so that it is computed again
                raise DamagedPart(part) from error
            if number == 0:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": (blocks, *array.shape[1:])}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(np.ascontiguousarray(array).data)


class ShardFunction(Protocol):
    """What is computed of a shard. It is pickled to workers, and `setup` loads there what it needs."""

    verb: ClassVar[str]  # what it does, for the progress
    block_size: int  # tokens per block

    def setup(self, device: "torch.device") -> None:
        """Load what `__call__` needs onto a device; called once in every worker."""

    def __call__(self, tokens: NDArray[Any]) -> Arrays:
        """The arrays of token blocks [blocks, block_size]."""


class Task(NamedTuple):
    """What a worker is given: the name of a shard and its tokens [blocks, block_size]."""

    name: str
    tokens: NDArray[Any]


class Outcome(NamedTuple):
    """What came of a task."""

    name: str  # of the shard
    arrays: Arrays | None  # what the function returned; None where it failed
    error: str = ""  # why it failed
    again: bool = True  # whether another attempt may succeed; it cannot where the function refused its input


class Executor(ABC):
    """Where a function is computed; it knows nothing of what is computed."""

    def share(self, shards: Sequence["TokenShard"]) -> Sequence["TokenShard"]:
        """Those of the shards that are computed here: all of them, unless other jobs compute the rest."""
        return shards

    @abstractmethod
    def run(self, function: ShardFunction, work: "Work") -> Generator[Outcome, None, None]:
        """Compute what `work.take()` gives until nothing is left; closing the iterator ends what is still running.

        Raises:
            CoCoMixError: nothing can be computed, for example because `function.setup` refuses.
        """


@dataclass(frozen=True)
class Report:
    """What a call of `map_shards` did."""

    tokens: int  # computed by this call
    seconds: float  # it took, loading included
    failed: Mapping[str, str]  # shards that were given up → why
    # shards without a result, and token files whose arrays another process is joining; empty if all is done
    left: Sequence[str]


def map_shards(
    function: ShardFunction,
    shards: Sequence["TokenShard"],
    *,
    folders: Sequence[PartFolder],
    executor: Executor,
    retries: int = 2,
) -> Report:
    """Compute a function of every shard that has no result yet, and store its arrays.

    A shard that fails is tried again at the end, up to `retries` times, and left out after that; the rest goes on.
    Every job names all shards of the data, in order. Each of the unfinished folders keeps some of the arrays.

    Raises:
        CoCoMixError: nothing can be computed at all.
        OSError: a folder cannot be written.
    """
    started, width = time.perf_counter(), function.block_size
    with Work(folders, shards, executor.share(shards), retries) as work:
        done, total = work.blocks_done, sum(map(_blocks, work.mine))
        with (
            progress(function.verb, total * width, "tokens", done=done * width) as advance,
            closing(executor.run(function, work)) as outcomes,
        ):
            for outcome in outcomes:
                advance(work.settle(outcome) * width)
        left = work.join_all()
        return Report((work.blocks_done - done) * width, time.perf_counter() - started, work.failed, left)


class Work:
    """The shards of one call: which are left, which are claimed here, which failed; `mine` are the call's own."""

    def __init__(
        self, folders: Sequence[PartFolder], shards: Sequence["TokenShard"], mine: Sequence["TokenShard"], retries: int
    ) -> None:
        self.folders, self.retries, self.mine = folders, retries, mine
        self.files: dict[str, list[TokenShard]] = {}  # shards of every token file, in order
        for shard in shards:
            self.files.setdefault(file_of(shard), []).append(shard)
        self.failed: dict[str, str] = {}  # shards that were given up → why
        self._attempts: Counter[str] = Counter()
        self._held: dict[str, tuple[TokenShard, ExitStack]] = {}
        joined = {file for file in self.files if self._is_joined(file)}
        self._todo = deque(shard for shard in mine if file_of(shard) not in joined and not self._is_held(shard))
        self.blocks_done = sum(map(_blocks, mine)) - sum(map(_blocks, self._todo))  # those of `mine` with a result

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        for _, locks in self._held.values():
            locks.close()
        if error is not None:
            blocks, places = sum(map(_blocks, self.mine)), " and ".join(str(folder.path) for folder in self.folders)
            error.add_note(
                f"{self.blocks_done:,} of {blocks:,} blocks are kept in {places}, and the same command goes on "
                "with the others"
            )

    def take(self) -> Task | None:
        """Claim the next shard; None where there is none at this moment. One that fails may come back later."""
        while self.left():
            shard = self._todo.popleft()
            if not self._claim(shard):
                continue
            try:
                return Task(_name(shard), shard.read())
            except CoCoMixError as error:
                self._give_up(_name(shard), str(error))
        return None

    def left(self) -> int:
        """How many shards may still be taken; some of them may turn out to be claimed by other processes."""
        return len(self._todo) if len(self.failed) < _MOST_FAILED else 0

    def settle(self, outcome: Outcome) -> int:
        """Store what came of a task, or note that it failed; how many blocks have a result by it."""
        shard, locks = self._held[outcome.name]
        if outcome.arrays is not None:
            for folder in self.folders:
                folder.write(shard, outcome.arrays)
            locks.close()
            del self._held[outcome.name]
            self.blocks_done += _blocks(shard)
            self.join(file_of(shard))
            return _blocks(shard)
        self._attempts[outcome.name] += 1
        if outcome.again and self._attempts[outcome.name] <= self.retries:
            logger.warning("%s failed and is tried again: %s", outcome.name, outcome.error)
            self._todo.append(shard)
        else:
            self._give_up(outcome.name, outcome.error)
        return 0

    def join(self, file: str) -> None:
        """Join the parts of a token file, if all are there and no other process is joining them."""
        for folder in self.folders:
            try:
                folder.join(file, self.files[file])
            except DamagedPart as error:
                # Its arrays are computed again: by this call while it still takes tasks, else by the next.
                logger.warning("%s is damaged and is made again", error.part)
                self._todo.extend(shard for shard in self.mine if folder.part(shard) == error.part)

    def join_all(self) -> list[str]:
        """Join what can be joined, and say what is left, as in `Report`."""
        for file in self.files:
            self.join(file)  # also one whose last part was written by a job that was killed before it could join
        left = []
        for file in (file for file in self.files if not self._is_joined(file)):
            missing = [_name(shard) for shard in self.files[file] if not self._is_held(shard)]
            left += missing or [file]
        return left

    def _claim(self, shard: "TokenShard") -> bool:
        """Whether the shard is this process's to compute."""
        if _name(shard) in self._held:
            return True  # it is tried again
        with suppress(Timeout), ExitStack() as locks:
            for folder in self.folders:
                part = folder.part(shard)
                for place in (part.parent.parent, part.parent):  # not `folder.path`: it is gone if another job finished
                    place.mkdir(exist_ok=True)
                locks.enter_context(FileLock(part.with_suffix(".lock")).acquire(blocking=False))
            if not self._is_held(shard):  # else computed by another process since the start
                self._held[_name(shard)] = (shard, locks.pop_all())
                return True
        return False

    def _give_up(self, name: str, error: str) -> None:
        self.failed[name] = error
        self._held.pop(name)[1].close()

    def _is_held(self, shard: "TokenShard") -> bool:
        return all(folder.holds(shard) for folder in self.folders)

    def _is_joined(self, file: str) -> bool:
        return all(folder.is_joined(file) for folder in self.folders)


def _blocks(shard: "TokenShard") -> int:
    return shard.stop - shard.start


def _name(shard: "TokenShard") -> str:
    return f"{file_of(shard)}[{shard.start}:{shard.stop}]"
