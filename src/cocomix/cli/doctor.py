"""The verb `doctor`."""

import logging
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cocomix.cli.options import AsJson
from cocomix.cli.printing import print_json
from cocomix.runtime.errors import CoCoMixError

__all__ = ["doctor"]

logger = logging.getLogger(__name__)


_COLOURS = {"ok": "green", "fail": "red", "warn": "yellow"}


def doctor(json_output: AsJson = False) -> None:
    """Look over this machine: versions, device, disk, hub.

    [dim]Example: cocomix doctor[/dim]
    """
    from cocomix.runtime.machine import examine

    lines = examine()
    if json_output:
        print_json([line._asdict() for line in lines])
    elif logger.isEnabledFor(logging.INFO):
        Console().print(_table([(name, state, "; ".join(filter(None, texts))) for name, state, *texts in lines]))
    failed = [line for line in lines if line.state == "fail"]
    if failed:
        raise CoCoMixError(f"{failed[0].name}: {failed[0].value}; {failed[0].advice}.")


def _table(rows: Iterable[tuple[str, str, str]]) -> Table:
    table = Table(show_header=False, box=None)
    for name, state, text in rows:
        table.add_row(escape(name), f"[{_COLOURS[state]}]{state}[/]", escape(text))
    return table
