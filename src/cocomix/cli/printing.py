"""Results on standard output: JSON for scripts, tables for people."""

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["print_json", "print_table"]


def print_json(value: Any) -> None:
    """One JSON object (or list) on standard output, for scripts."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_table(values: dict[str, Any]) -> None:
    """Two columns, name and value, on standard output."""
    table = Table(show_header=False, box=None)
    for name, value in values.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value))
    Console().print(table)
