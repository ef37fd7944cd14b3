"""One function on many items: in this process, or in several that the machine's cores share."""

import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from cocomix.runtime.errors import CoCoMixError

T = TypeVar("T")
R = TypeVar("R")
Advance = Callable[[float], None]
Stop = Callable[[], None]
_POLL_SECONDS = 0.5


class Workers:
    """A context in which functions are run by `count` processes, started when they are first needed; 1 is this one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._stopped.set()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self, function: Callable[[T, Advance, Stop], R], items: Sequence[T], advance: Advance
    ) -> Generator[R, None, None]:
        """Results of all items, in their order; where the iteration is ended early, so is the work.

        `function` is picklable and gets an item, a function to report progress to, which reaches `advance`, and one to
        call now and then, which raises where the work is no longer wanted.
        """
        if self.count == 1 or len(items) <= 1:
            yield from (function(item, advance, lambda: None) for item in items)
            return
        pool, futures = self._started(), list[Future[R]]()
        told = self._progress.value
        try:
            for number in range(len(items)):
                while len(futures) < min(len(items), number + 2 * self.count):
                    futures.append(pool.submit(function, items[len(futures)], _advance, _stop))
                while not futures[number].done():
                    wait([future for future in futures[number:] if not future.done()], _POLL_SECONDS, FIRST_COMPLETED)
                    now = self._progress.value
                    advance(now - told)
                    told = now
                yield futures[number].result()
        except BrokenProcessPool as error:
            raise CoCoMixError(
                "a worker process was ended by the system, perhaps for want of memory; run the same command again to "
                "go on, with fewer --workers if it happens again."
            ) from error
        finally:
            for future in futures:
                future.cancel()
            self._stopped.set()
            wait([future for future in futures if not future.cancelled()])
            self._stopped.clear()
            advance(self._progress.value - told)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = get_context("spawn")  # threads of this process, as those of tokenizers, do not survive a fork
            self._stopped, self._progress = context.Event(), context.Value("d", 0.0)
            self._pool = ProcessPoolExecutor(
                self.count, context, initializer=_begin, initargs=(self._stopped, self._progress, os.getpid())
            )
        return self._pool


class _Unwanted(Exception):
    """The work was given up, or the process that wanted it is gone."""


_state: tuple[Any, Any, int] | None = None


def _begin(stopped: Any, done: Any, parent: int) -> None:
    global _state
    _state = (stopped, done, parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a process already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process ends the work


def _advance(amount: float) -> None:
    assert _state is not None
    with _state[1].get_lock():
        _state[1].value += amount


def _stop() -> None:
    assert _state is not None
    stopped, _, parent = _state
    if os.getppid() != parent:
        os._exit(1)  # the command was killed: whoever gives it again must not meet its workers
    if stopped.is_set():
        raise _Unwanted
