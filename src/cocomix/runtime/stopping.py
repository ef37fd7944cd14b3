"""Ctrl-C and SIGTERM, which job schedulers send before they take a machine away, as something code can answer."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

STATUS = 128 + signal.SIGTERM  # exit status of a command that SIGTERM ended, as shells report it: 143


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt not an `Exception`, so that it ends what it meets, cleaning up.

    Whoever keeps something of the work says so in a note (`add_note`), a clause such as "the checkpoint of step 100 is
    kept". The command line prints the notes of this error, of `KeyboardInterrupt`, and of a full disk's `OSError`.
    """


class Noted:
    """Whether a signal to stop has arrived, and which.

    Call it for the first; a second one of the same kind is raised at once, as `KeyboardInterrupt` or `Terminated`.
    Those of the first second do not count: launchers pass on what a terminal has sent to every process already.
    """

    def __init__(self) -> None:
        self._first: dict[int, float] = {}

    def __call__(self) -> bool:
        """Whether one has arrived."""
        return bool(self._first)

    @property
    def error(self) -> BaseException:
        """What the first one means; `Terminated` where none came, as in a process that another one asked to stop."""
        return _meaning(next(iter(self._first), signal.SIGTERM))

    def note(self, number: int, frame: Any) -> None:
        """The signal handler."""
        now = time.monotonic()
        if now - self._first.setdefault(number, now) > 1.0:
            raise _meaning(number)


def _meaning(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()


def termination_raised() -> AbstractContextManager[None]:
    """Raise `Terminated` in the main thread when SIGTERM arrives; does nothing in other threads."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    return handled(stop, signal.SIGTERM)


@contextmanager
def termination_noted() -> Iterator[Noted]:
    """Note Ctrl-C and SIGTERM, for work that must reach a good moment to stop; in the main thread alone."""
    noted = Noted()
    with handled(noted.note, signal.SIGTERM, signal.SIGINT):
        yield noted


@contextmanager
def handled(handler: Callable[[int, Any], None] | signal.Handlers, *numbers: signal.Signals) -> Iterator[None]:
    """Answer signals with a handler while the block runs; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)
