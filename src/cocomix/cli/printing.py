"""What verbs print on standard output: JSON for scripts, text and tables for people."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from cocomix.runtime.errors import CoCoMixError

_COLOURS = {
    "red": ("broken", "damaged", "fail", "failed", "unreadable"),
    "yellow": ("not checked", "stopped", "warn"),
    "green": ("finished", "ok"),
    "cyan": ("running",),
    "dim": ("waiting",),
}
_STYLES = {state: style for style, states in _COLOURS.items() for state in states}
_FILE_WIDTH = 200  # columns of tables that go to a file or a pipe


@dataclass(frozen=True)
class Printed:
    """The result of a verb, which then takes `--json`."""

    json: Any  # one object or list, printed with `--json`
    text: RenderableType | None = None  # printed without; a plain string as it is
    error: CoCoMixError | None = None  # raised after either, for a result that is a failure
    note: str | None = None  # what was done, told on standard error before
    next: str | None = None  # the command to give next, told on standard error after
    only_aloud: bool = False  # whether the text is left out with `--quiet`

    def print(self, *, as_json: bool, quiet: bool = False) -> None:
        """Print the JSON or the text."""
        if as_json:
            typer.echo(json.dumps(self.json, ensure_ascii=False))
        elif quiet and self.only_aloud:
            return
        elif isinstance(self.text, str):
            typer.echo(self.text)
        elif self.text is not None:
            console = Console()
            if not console.is_terminal:
                console.width = max(console.width, _FILE_WIDTH)
            console.print(self.text)


def table(rows: Iterable[Sequence[str]], *head: str, state: int | None = None) -> Table:
    """Rows of text; the cells of the column `state` are coloured by the word they begin with, such as `running`."""
    made = Table(*head, show_header=bool(head), box=None, padding=(0, 1, 0, 0))
    for row in rows:
        cells = [escape(cell) for cell in row]
        if state is not None:
            word = next((word for word in _STYLES if row[state].startswith(word)), None)
            cells[state] = f"[{_STYLES[word]}]{cells[state]}[/]" if word else cells[state]
        made.add_row(*cells)
    return made
