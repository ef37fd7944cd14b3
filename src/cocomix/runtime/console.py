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
from typing import TYPE_CHECKING

from cocomix.runtime.processes import is_first_process

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[float], None]
_FIRST_LINE_SECONDS, _LINE_SECONDS = 10.0, 60.0  # until the first log line of `progress`, and between the others

logger = logging.getLogger(__name__)
_package = logging.getLogger("cocomix")


def set_up_logging(*, quiet: bool = False) -> None:
    """Write the package's messages to standard error; of processes that a launcher started, only the first does.

    With `quiet` only warnings, and no progress; calling it again changes that.
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
            terminal().print(message, highlight=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


_standard_error = _StandardError()


@contextmanager
def progress(description: str, total: float | None, unit: str, *, done: float = 0) -> Iterator[Advance]:
    """Show how far work is while the block runs: a bar on a terminal, else a log line a minute.

    Shows nothing where information is not logged: by default in library use, and with `quiet`. Yields a function that
    adds an amount to what is done. `total` is the whole work in `unit`s, e.g. "tokens", `None` where it is not known;
    `done` was done before, of resumed work, and is not counted in the rate.
    """
    if not logger.isEnabledFor(logging.INFO):
        yield lambda amount: None
    elif is_terminal() and _standard_error in _package.handlers:
        with _bar(description, total, unit, done) as advance:
            yield advance
    else:
        pace = _Pace(description, total, unit, done)
        ended = threading.Event()

        def speak() -> None:
            wait = _FIRST_LINE_SECONDS
            while not ended.wait(wait):
                logger.info(pace.line())
                wait = _LINE_SECONDS

        # A thread, so that a step of several minutes does not look like a hung process.
        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        try:
            yield pace.advance
        finally:
            ended.set()
            speaker.join()


class _Pace:
    """Amount done, rate since the start and time left."""

    def __init__(self, description: str, total: float | None, unit: str, done: float) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.before = self.done = done
        self.started = monotonic()

    def advance(self, amount: float) -> None:
        self.done += amount

    def line(self) -> str:
        """E.g. `label: 1,200 of 4,000 tokens (30%), 20 tokens/s, 2 min left`."""
        passed = monotonic() - self.started
        rate = (self.done - self.before) / passed if passed > 0 else 0.0
        if self.total is not None:
            parts = [f"{self.done:,.0f} of {self.total:,.0f} {self.unit} ({self.done / max(self.total, 1e-9):.0%})"]
        else:
            parts = [f"{self.done:,.0f} {self.unit}"] if self.done > 0 else []
        if rate == 0:
            parts.append(f"{_duration(passed)} so far")
        else:
            parts.append(_rate(rate, self.unit))
            if self.total is not None:
                parts.append(f"{_duration(max(self.total - self.done, 0) / rate)} left")
        return f"{self.description}: {', '.join(parts)}{_busy()}"


def _busy() -> str:
    """A remark where more wants to run than the machine has cores for: threads that wait for one another crawl then."""
    import psutil

    load, cores = psutil.getloadavg()[0], os.cpu_count() or 1
    return f"; the machine is busy: load {load:.0f} on {cores} cores" if load > 1.5 * cores else ""


def _rate(rate: float, unit: str) -> str:
    """Of units per second, in numbers that are not small: `8,012 tokens/s`, `2.5 runs/h`."""
    factor, span = (1, "s") if rate >= 1 else (60, "min") if rate >= 1 / 60 else (3600, "h")
    value = rate * factor
    return f"{value:,.0f} {unit}/{span}" if value >= 10 else f"{value:,.2g} {unit}/{span}"


def _duration(seconds: float) -> str:
    """In one unit: `40 s`, `18 min`, `5.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def is_terminal() -> bool:
    """Whether standard error is a terminal that can redraw lines."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@functools.cache
def terminal() -> "Console":
    """Standard error as rich draws on it: shared, so that bars, tables and messages do not overwrite one another."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def _bar(description: str, total: float | None, unit: str, done: float) -> Iterator[Advance]:
    """A bar with the speed and the time left, taken down at the end."""
    from rich import progress as rich_progress
    from rich.markup import escape
    from rich.text import Text

    class Speed(rich_progress.ProgressColumn):
        def render(self, task: rich_progress.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(_rate(speed, unit) if speed else "", style="progress.data.speed")

    columns = (
        rich_progress.SpinnerColumn(),
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn() if total is None else rich_progress.TaskProgressColumn(),
        Speed(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=terminal(), transient=True) as bar:
        task = bar.add_task(escape(description), total=total, completed=int(done))
        yield lambda amount: bar.advance(task, amount)
