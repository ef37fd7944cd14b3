"""The verb `verify`."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cocomix.cli.options import AsJson
from cocomix.cli.printing import print_json
from cocomix.runtime.console import ConsoleReporter
from cocomix.runtime.errors import CoCoMixError

__all__ = ["verify"]

logger = logging.getLogger(__name__)


_COLOURS = {"ok": "green", "broken": "red", "not checked": "yellow"}


def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Data, labels, dictionary, run, checkpoint, atlas, …")],
    json_output: AsJson = False,
) -> None:
    """Check an artefact, and what it says it was made from.

    [dim]Example: cocomix verify data/books/labels[/dim]
    """
    from cocomix.artifacts.remote import shown
    from cocomix.integrity import verify as run

    found = run(path, ConsoleReporter())
    if json_output:
        print_json(found.to_json())
    elif logger.isEnabledFor(logging.INFO):
        Console().print(
            f"{found.kind}, format {found.format_version}, in {shown(found.path)}", highlight=False, markup=False
        )
        Console().print(_table([(finding.what, finding.state, finding.detail) for finding in found.findings]))
    if found.broken:
        more = f" ({len(found.broken) - 1} more)" if len(found.broken) > 1 else ""
        raise CoCoMixError(f"{found.broken[0].detail}{more}")


def _table(rows: Iterable[tuple[str, str, str]]) -> Table:
    table = Table(show_header=False, box=None)
    for name, state, text in rows:
        table.add_row(escape(name), f"[{_COLOURS[state]}]{state}[/]", escape(text))
    return table
