"""How long work tells a person what it is doing.

Library functions take a `Reporter` and are silent by default (`SilentReporter`); the command line passes a
`ConsoleReporter`, which writes to standard error so that standard output stays free for results.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.text import Text

__all__ = ["ConsoleReporter", "Reporter", "SilentReporter"]

Advance = Callable[[float], None]


class Reporter(Protocol):
    """Receives one-line messages and progress."""

    def say(self, message: str) -> None:
        """Report one finished step or fact, one line."""
        ...

    def warn(self, message: str) -> None:
        """Report something the user should know but that does not stop the work."""
        ...

    def progress(self, description: str, total: float | None, unit: str) -> AbstractContextManager[Advance]:
        """Open a progress bar; the yielded function advances it by a number of `unit`s."""
        ...


class SilentReporter:
    """Says nothing: the default for library callers."""

    def say(self, message: str) -> None:
        """Drop the message."""

    def warn(self, message: str) -> None:
        """Drop the message."""

    @contextmanager
    def progress(self, description: str, total: float | None, unit: str) -> Iterator[Advance]:
        """Yield a function that does nothing."""
        yield lambda amount: None


class _SpeedColumn(TextColumn):
    """Units per second of a task, e.g. `8,012 tokens/s`."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: RichTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s", style="progress.data.speed")


class ConsoleReporter:
    """Writes messages and progress bars to standard error."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console if console is not None else Console(stderr=True)
        self.quiet = quiet

    def say(self, message: str) -> None:
        """Print the message unless quiet."""
        if not self.quiet:
            self.console.print(escape(message), highlight=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print the message, even when quiet."""
        self.console.print(f"[yellow]warning:[/yellow] {escape(message)}", highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, description: str, total: float | None, unit: str) -> Iterator[Advance]:
        """Show a bar with speed and time remaining while the block runs; nothing when quiet or not a terminal."""
        if self.quiet or not self.console.is_terminal:
            yield lambda amount: None
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn() if total is not None else MofNCompleteColumn(),
            _SpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(escape(description), total=total, unit=unit)
            yield lambda amount: bar.advance(task, amount)
