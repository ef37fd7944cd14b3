"""Messages and progress of long work, by Python's `logging`.

Modules log to `logging.getLogger(__name__)` and open `progress()` around loops. Used as a library the package is silent
unless its user configures logging; the command line calls `set_up_logging`, which writes to standard error, so that
standard output stays free for results. rich is imported only where there is a terminal to draw on.
"""

import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from tqdm import tqdm  # type: ignore[import-untyped]

from cocomix.runtime.processes import is_first_process

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[float], None]
_FIRST_LINE_SECONDS, _LINE_SECONDS = 10.0, 60.0
"""Until the first log line of `progress`, and between the others."""

logger = logging.getLogger(__name__)
_package = logging.getLogger("cocomix")


def set_up_logging(*, quiet: bool = False) -> None:
    """Write the package's messages to standard error; of processes that a launcher started, only the first does.

    Calling it again changes `quiet`: only warnings, and no progress.
    """
    if not is_first_process():
        return
    _package.addHandler(_standard_error)
    _package.setLevel(logging.WARNING if quiet else logging.INFO)
    _package.propagate = False  # a library that configures the root logger would print everything a second time


class _StandardError(logging.Handler):
    """Prints information plainly, and warnings and errors with their level before them."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}:" if record.levelno >= logging.WARNING else ""
        try:
            text = self.format(record)
            if not is_terminal():
                print(*filter(None, (level, text)), file=sys.stderr, flush=True)  # noqa: T201  # a handler prints
                return
            from rich.text import Text

            message = Text.assemble((level, "yellow"), " " if level else "", text)
            with tqdm.external_write_mode(file=sys.stderr):  # above the bars, if there are any
                terminal().print(message, highlight=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


_standard_error = _StandardError()


@contextmanager
def progress(description: str, total: float | None, unit: str, *, done: float = 0) -> Iterator[Advance]:
    """Show how far work is while the block runs: a bar on a terminal, else a log line a minute.

    Shows nothing where information is not logged: by default in library use, and with `quiet`.

    Args:
        description: what is being done, e.g. `"label"`.
        total: amount of the whole work in `unit`s, e.g. `"tokens"`; None where it is not known.
        done: amount that was done before, of resumed work; not counted in the rate.

    Yields:
        A function that adds an amount to what is done.
    """
    if not logger.isEnabledFor(logging.INFO):
        yield lambda amount: None
        return
    units: dict[str, Any] = {"unit": f" {unit}", "unit_scale": True, "initial": done}
    if is_terminal() and _standard_error in _package.handlers:
        with tqdm(desc=description, total=total, leave=False, dynamic_ncols=True, **units) as bar:
            yield bar.update
        return
    reached, started, ended = done, monotonic(), threading.Event()

    def advance(amount: float) -> None:
        nonlocal reached
        reached += amount

    def speak() -> None:
        wait = _FIRST_LINE_SECONDS
        while not ended.wait(wait):
            line = tqdm.format_meter(reached, total, monotonic() - started, prefix=description, **units)
            logger.info(line + _busy())
            wait = _LINE_SECONDS

    # A thread, so that a step of several minutes does not look like a hung process.
    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield advance
    finally:
        ended.set()
        speaker.join()


def _busy() -> str:
    """A remark where more wants to run than the machine has cores for: threads that wait for one another crawl then."""
    import psutil

    load, cores = psutil.getloadavg()[0], os.cpu_count() or 1
    return f"; the machine is busy: load {load:.0f} on {cores} cores" if load > 1.5 * cores else ""


def is_terminal() -> bool:
    """Whether standard error is a terminal that can redraw lines."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@functools.cache
def terminal() -> "Console":
    """Standard error as rich draws on it."""
    from rich.console import Console

    return Console(stderr=True)
