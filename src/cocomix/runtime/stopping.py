"""SIGTERM, which job schedulers send before they take a machine away, as something Python code can answer."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["STATUS", "Terminated", "termination_noted", "termination_raised"]

STATUS = 128 + signal.SIGTERM
"""Exit status of a command that SIGTERM ended, as shells report it: 143."""


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt not an `Exception`, so that it ends what it meets, cleaning up.

    Whoever keeps something of the work says so in a note (`add_note`), a clause such as "the checkpoint of step 100 is
    kept". The command line prints the notes of this error, of `KeyboardInterrupt`, and of a full disk's `OSError`.
    """


@contextmanager
def termination_raised() -> Iterator[None]:
    """Raise `Terminated` in the main thread when SIGTERM arrives; does nothing in other threads."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    with _handled(stop):
        yield


@contextmanager
def termination_noted() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has arrived, for work that must reach a good moment to stop.

    A second signal is raised as `Terminated`. In other threads than the main one signals stay as they are.
    """
    arrived = threading.Event()

    def note(number: int, frame: Any) -> None:
        if arrived.is_set():
            raise Terminated
        arrived.set()

    with _handled(note):
        yield arrived.is_set


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
