"""`map_shards`: apply a function to ranges of token blocks and store the arrays it returns, resumably.

A *shard* is a range of blocks of one token file. Its result is written as one *part*, which appears by a rename, so
that a kill at any moment leaves whole parts and nothing that looks like one. When a token file has all its parts, they
are joined into the arrays that are kept:

    FOLDER/parts/train-00000/00000000-00001024.npz   the arrays of blocks 0 to 1,023 of the token file train-00000
    FOLDER/train-00000.ids.npy                       the array `ids` of all its blocks

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
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
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

Arrays = Mapping[str, NDArray[Any]]
"""What is stored of some blocks: arrays [blocks, …] by name."""

PARTS = "parts"
"""Folder of the parts within the unfinished folder."""
_MOST_FAILED = 100  # shards that failed for good, after which no more are begun: the cause is not in the shards then


class ShardFunction(Protocol):
    """What is computed of a shard. It is pickled to workers, and `setup` loads there what it needs.

    Attributes:
        verb: what it does, for the progress.
        block_size: tokens per block.
    """

    verb: ClassVar[str]
    block_size: int

    @property
    def columns(self) -> Sequence[str]:
        """Names of the arrays that it returns."""
        ...

    def setup(self, device: "torch.device") -> None:
        """Load what `__call__` needs onto a device; called once in every worker."""
        ...

    def __call__(self, tokens: NDArray[Any]) -> Arrays:
        """The arrays of token blocks [blocks, block_size]."""
        ...


class Task(NamedTuple):
    """What a worker is given: the name of a shard and its tokens [blocks, block_size]."""

    name: str
    tokens: NDArray[Any]


class Outcome(NamedTuple):
    """What came of a task.

    Attributes:
        name: of the shard.
        arrays: what the function returned; None where it failed.
        error: why it failed.
        again: whether another attempt may succeed; it cannot where the function refused its input.
    """

    name: str
    arrays: Arrays | None
    error: str = ""
    again: bool = True


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
    """What a call of `map_shards` did.

    Attributes:
        tokens: computed by this call.
        seconds: it took, loading included.
        failed: shards that were given up → why.
        left: shards without a result, and token files whose arrays another process is joining; empty if all is done.
    """

    tokens: int
    seconds: float
    failed: Mapping[str, str]
    left: Sequence[str]


def map_shards(
    function: ShardFunction, shards: Sequence["TokenShard"], *, output: Path, executor: Executor, retries: int = 2
) -> Report:
    """Compute a function of every shard that has no result yet, and store its arrays.

    A shard that fails is tried again at the end, up to `retries` times, and left out after that; the rest goes on.

    Args:
        function: from tokens to arrays.
        shards: all of the data, in order, file after file; the same in every job.
        output: the unfinished folder.
        executor: where the function is computed.
        retries: how often a shard is tried again.

    Raises:
        CoCoMixError: nothing can be computed at all.
        OSError: the folder cannot be written.
    """
    started, width = time.perf_counter(), function.block_size
    with Work(output, shards, executor.share(shards), function.columns, retries) as work:
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
    """The shards of one call: which are left, which are claimed here, which failed.

    Attributes:
        files: shards of every token file, in order.
        mine: the shards of this call.
        blocks_done: blocks of `mine` that have a result.
        failed: shards that were given up → why.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence["TokenShard"],
        mine: Sequence["TokenShard"],
        columns: Sequence[str],
        retries: int,
    ) -> None:
        self.folder, self.columns, self.retries, self.mine = folder, columns, retries, mine
        self.files: dict[str, list[TokenShard]] = {}
        for shard in shards:
            self.files.setdefault(_file(shard), []).append(shard)
        self.failed: dict[str, str] = {}
        self._attempts: Counter[str] = Counter()
        self._held: dict[str, tuple[TokenShard, FileLock]] = {}
        joined = {file for file in self.files if self._is_joined(file)}
        self._todo = deque(shard for shard in mine if _file(shard) not in joined and not self._part(shard).exists())
        self.blocks_done = sum(map(_blocks, mine)) - sum(map(_blocks, self._todo))

    def __enter__(self) -> "Work":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for _, lock in self._held.values():
            lock.release()
        if error is not None:
            blocks = sum(map(_blocks, self.mine))
            error.add_note(
                f"{self.blocks_done:,} of {blocks:,} blocks are kept in {self.folder}, and the same command goes on "
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
        shard, lock = self._held[outcome.name]
        if outcome.arrays is not None:
            _write_part(self._part(shard), outcome.arrays)
            lock.release()
            del self._held[outcome.name]
            self.blocks_done += _blocks(shard)
            self.join(_file(shard))
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
        shards = self.files[file]
        if self._is_joined(file) or not all(self._part(shard).exists() for shard in shards):
            return
        lock = FileLock(self.folder / PARTS / f"{file}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return
        try:
            if not self._is_joined(file):
                parts = [self._part(shard) for shard in shards]
                for column in self.columns:
                    _join_column(self._column(file, column), parts, column, shards[-1].stop)
            shutil.rmtree(self.folder / PARTS / file, ignore_errors=True)
        except _DamagedPart as error:
            # Its arrays are computed again: by this call while it still takes tasks, else by the next.
            part: Path = error.args[0]
            part.unlink()
            logger.warning("%s is damaged and is made again", part)
            self._todo.extend(shard for shard in self.mine if self._part(shard) == part)
        finally:
            lock.release()

    def join_all(self) -> list[str]:
        """Join what can be joined, and say what is left, as in `Report`."""
        for file in self.files:
            self.join(file)  # also one whose last part was written by a job that was killed before it could join
        left = []
        for file in (file for file in self.files if not self._is_joined(file)):
            missing = [_name(shard) for shard in self.files[file] if not self._part(shard).exists()]
            left += missing or [file]
        return left

    def _claim(self, shard: "TokenShard") -> bool:
        """Whether the shard is this process's to compute."""
        if _name(shard) in self._held:
            return True  # it is tried again
        part = self._part(shard)
        for folder in (part.parent.parent, part.parent):  # but not `self.folder`: it is gone when another job finished
            folder.mkdir(exist_ok=True)
        lock = FileLock(part.with_suffix(".lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        if part.exists() or self._is_joined(_file(shard)):  # computed by another process since the start
            lock.release()
            return False
        self._held[_name(shard)] = (shard, lock)
        return True

    def _give_up(self, name: str, error: str) -> None:
        self.failed[name] = error
        self._held.pop(name)[1].release()

    def _part(self, shard: "TokenShard") -> Path:
        return self.folder / PARTS / _file(shard) / f"{shard.start:08d}-{shard.stop:08d}.npz"

    def _column(self, file: str, column: str) -> Path:
        return self.folder / f"{file}.{column}.npy"

    def _is_joined(self, file: str) -> bool:
        return all(self._column(file, column).exists() for column in self.columns)


class _DamagedPart(Exception):
    """A part, the argument, cannot be read or is not what was written."""


def _file(shard: "TokenShard") -> str:
    return shard.file.name.removesuffix(".npy")


def _blocks(shard: "TokenShard") -> int:
    return shard.stop - shard.start


def _name(shard: "TokenShard") -> str:
    return f"{_file(shard)}[{shard.start}:{shard.stop}]"


def _write_part(path: Path, arrays: Arrays) -> None:
    with written_aside(path) as aside, aside.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # uncompressed, with a checksum of every array


def _read_part(part: Path, column: str) -> NDArray[Any]:
    try:
        with np.load(part) as stored:  # a checksum that differs is a BadZipFile
            array: NDArray[Any] = stored[column]
            return array
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise _DamagedPart(part) from error


def _join_column(path: Path, parts: Sequence[Path], column: str, blocks: int) -> None:
    """Write one array of all parts, one after the other, as a `.npy` file; memory holds one part's.

    Raises:
        _DamagedPart: one cannot be read.
    """
    with written_aside(path) as aside, aside.open("wb") as stream:
        for number, part in enumerate(parts):
            array = _read_part(part, column)
            if number == 0:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": (blocks, *array.shape[1:])}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(np.ascontiguousarray(array).data)
