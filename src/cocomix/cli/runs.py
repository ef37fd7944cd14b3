"""The verb `runs`."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cocomix.cli.options import AsJson
from cocomix.cli.printing import print_json

if TYPE_CHECKING:
    from cocomix.evaluation.listing import RunSummary

__all__ = ["runs"]

logger = logging.getLogger(__name__)


_STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "damaged": "red"}


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Folder of runs.")] = Path("runs"),
    json_output: AsJson = False,
) -> None:
    """List runs: state, tokens so far, last loss, age.

    Sweeps are listed too. A stopped or failed run goes on when the command that started it is given again.

    [dim]Example: cocomix runs; cocomix runs sweeps/paper_cpu --json[/dim]
    """
    from cocomix.evaluation.listing import list_runs

    found = list_runs(folder)
    if json_output:
        print_json([{**asdict(run), "path": str(run.path)} for run in found])
    elif found:
        Console().print(_table(found))
    else:
        logger.info(f"no runs in {folder}; train one: cocomix train RECIPE --output {folder}/first")


def _table(found: "list[RunSummary]") -> Table:
    from cocomix.evaluation.formatting import duration

    table = Table("run", "state", "arm", "tokens", "loss", "age", box=None, padding=(0, 1, 0, 0))
    for run in found:
        at = f" at step {run.step:,}" if run.state in ("running", "stopped", "failed") else ""
        detail = f": {run.detail}" if run.detail else ""
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        state = f"[{_STYLES[run.state]}]{run.state}{at}[/]{escape(detail)}"
        table.add_row(escape(run.name), state, run.arm or "", f"{run.tokens:,}", loss, duration(run.age))
    return table
