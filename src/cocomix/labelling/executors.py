"""Where `map_shards` computes: in this process, in processes of this machine, or as one element of a Slurm array.

The results are the same, byte for byte, where the arithmetic is: on one kind of device and, on a CPU, with the same
number of threads in each process. `cocomix.labelling.ray_executor` computes on a Ray cluster.
"""

import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from cocomix.labelling.map_shards import Executor, Outcome, ShardFunction, Task, Work
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.stopping import handled

if TYPE_CHECKING:
    import torch

    from cocomix.data import TokenShard


@dataclass(frozen=True)
class Inline(Executor):
    """Computes in this process, on the machine's accelerator if there is one."""

    def run(self, function: ShardFunction, work: Work) -> Generator[Outcome, None, None]:
        from cocomix.runtime.device import default_device

        if work.left():
            function.setup(default_device())
        while (task := work.take()) is not None:
            yield attempt(function, task)


@dataclass(frozen=True)
class Processes(Executor):
    """Computes in several processes, each with its own copy of what the function loads.

    They are started afresh, so that a script that uses this needs `if __name__ == "__main__":`. A process that dies is
    replaced, and its shard counts as failed once. They ignore Ctrl-C, which this process answers by ending them.
    """

    count: int
    """Processes; number i uses accelerator i, or its share of this process's threads on the CPU."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise CoCoMixError(f"--workers {self.count}: at least 1 process is needed.")

    def run(self, function: ShardFunction, work: Work) -> Generator[Outcome, None, None]:
        return _ProcessPool(function, self.count).run(work)


@dataclass(frozen=True)
class SlurmArray(Executor):
    """One of several jobs that share a folder; each computes a run of consecutive shards."""

    index: int
    """Of this job, counted from 0."""
    count: int
    inner: Executor = field(default_factory=Inline)

    def share(self, shards: Sequence["TokenShard"]) -> Sequence["TokenShard"]:
        # The same whatever is finished already. Consecutive, so that most token files are joined by one job.
        start, stop = (len(shards) * index // self.count for index in (self.index, self.index + 1))
        return shards[start:stop]

    def run(self, function: ShardFunction, work: Work) -> Generator[Outcome, None, None]:
        return self.inner.run(function, work)


def begin(function: ShardFunction, device: "torch.device", threads: int) -> str | None:
    """Prepare a process that only computes, and load what the function needs; why not, if that fails."""
    from cocomix.runtime.allocator import keep_freed_memory

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported, by what is loaded
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch

    try:
        keep_freed_memory()
        torch.set_num_threads(threads)
        function.setup(device)
    except CoCoMixError as error:
        return str(error)
    except Exception as error:
        return f"a worker cannot begin ({_one_line(error)})."
    return None


def attempt(function: ShardFunction, task: Task) -> Outcome:
    """Compute one shard; an exception becomes an outcome, so that the others go on."""
    try:
        return Outcome(task.name, function(task.tokens))
    except CoCoMixError as error:
        return Outcome(task.name, None, str(error), again=False)  # the input is refused, and would be again
    except Exception as error:
        return Outcome(task.name, None, _one_line(error))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


class Lost(NamedTuple):
    """A worker is gone: how, in words."""

    how: str


Answer = Outcome | Lost | str | None
"""What a worker says: the outcome of its task; or, once, None when it is ready, or a string if it cannot begin."""

W = TypeVar("W")


class WorkerPool(ABC, Generic[W]):
    """Workers that load a function and then compute one shard after another. Subclasses say what a worker is."""

    most_losses_at_start = 1

    def __init__(self) -> None:
        self.idle: list[W] = []  # workers without a task
        self.busy: dict[W, Task] = {}  # the tasks of the others
        self.loading: dict[W, None] = {}  # workers that are not ready yet
        self._losses_at_start = 0

    def run(self, work: Work) -> Generator[Outcome, None, None]:
        """Keep workers busy until nothing is left; then, or when the iterator is closed, end them."""
        try:
            while self.busy or work.left():
                self._give(work)
                self.resize(len(self.busy) + work.left())
                for worker, answer in self.answers():
                    outcome = self._note(worker, answer)
                    self._give(work)  # before the outcome is stored, which takes a while
                    if outcome is not None:
                        yield outcome
        finally:
            self.end()

    @abstractmethod
    def resize(self, useful: int) -> None:
        """Start workers, by adding them to `loading`, if there are fewer than allowed and `useful` in all."""

    @abstractmethod
    def send(self, worker: W, task: Task) -> None:
        """Have a worker compute a task."""

    @abstractmethod
    def answers(self) -> Iterable[tuple[W, Answer]]:
        """Wait for workers to say something, or for some seconds."""

    @abstractmethod
    def end(self) -> None:
        """End all workers, whatever they are doing."""

    def _give(self, work: Work) -> None:
        while self.idle and (task := work.take()) is not None:
            worker = self.idle.pop()
            self.busy[worker] = task
            self.send(worker, task)

    def _note(self, worker: W, answer: Answer) -> Outcome | None:
        """The outcome of a worker's task, if the answer is of one."""
        if isinstance(answer, str):
            raise CoCoMixError(answer)
        task, loading = self.busy.pop(worker, None), worker in self.loading
        self.loading.pop(worker, None)
        if not isinstance(answer, Lost):
            self.idle.append(worker)
            self._losses_at_start = 0
            return answer
        if task is not None:
            return Outcome(task.name, None, answer.how)
        if worker in self.idle:
            self.idle.remove(worker)
        self._losses_at_start += loading
        if self._losses_at_start >= self.most_losses_at_start:
            raise CoCoMixError(f"workers are lost before they can begin: {answer.how}.")
        return None


class _ProcessPool(WorkerPool[Connection]):
    """Processes of this machine; a worker is known by its end of the pipe to it."""

    def __init__(self, function: ShardFunction, count: int) -> None:
        import torch

        super().__init__()
        self.function, self.count = function, count
        self.threads = max(1, torch.get_num_threads() // count)
        self.processes: dict[Connection, tuple[int, SpawnProcess]] = {}

    def resize(self, useful: int) -> None:
        context = multiprocessing.get_context("spawn")
        while len(self.processes) < min(self.count, useful):
            index = min(set(range(self.count)) - {index for index, _ in self.processes.values()})
            here, there = context.Pipe()
            arguments = (self.function, index, self.threads, there)
            process = context.Process(target=_work, args=arguments, name=f"worker {index}", daemon=True)
            with handled(signal.SIG_IGN, signal.SIGINT):  # which the process inherits, and has while it imports
                process.start()
            there.close()
            self.processes[here] = (index, process)
            self.loading[here] = None

    def send(self, worker: Connection, task: Task) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it is gone, which is read next
            worker.send(task)

    def answers(self) -> Iterator[tuple[Connection, Answer]]:
        for worker in wait(list(self.processes)):
            assert isinstance(worker, Connection)
            try:
                answer = worker.recv()
            except (EOFError, ConnectionResetError):
                _, process = self.processes.pop(worker)
                process.join()
                status = process.exitcode or 0
                how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
                answer = Lost(f"{process.name} {how}; if the machine ran out of memory, use fewer --workers")
            yield worker, answer

    def end(self) -> None:
        for _, process in self.processes.values():
            process.terminate()
        for worker, (_, process) in self.processes.items():
            process.join()
            worker.close()


def _work(function: ShardFunction, index: int, threads: int, connection: Connection) -> None:
    """A worker process; see `Answer` for what it says."""
    from cocomix.runtime.device import worker_device

    with suppress(BrokenPipeError, ConnectionResetError, EOFError):  # the calling process is gone
        connection.send(begin(function, worker_device(index), threads))
        while True:
            connection.send(attempt(function, connection.recv()))
