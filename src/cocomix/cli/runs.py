"""The verb `runs`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cocomix.cli.printing import Printed, table

if TYPE_CHECKING:
    from cocomix.evaluation.listing import RunSummary


def runs(folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Folder of runs.")] = Path("runs")) -> Printed:
    """List runs: state, tokens so far, last loss, age.

    Sweeps are listed too. A stopped or failed run goes on when the command that started it is given again.

    [dim]Example: cocomix runs; cocomix runs sweeps/paper_cpu --json[/dim]
    """
    from cocomix.evaluation.listing import list_runs

    found = list_runs(folder)
    if not found:
        return Printed([], note=f"no runs in {folder}; train one: cocomix train RECIPE --output {folder}/first")
    return Printed([{**asdict(run), "path": str(run.path)} for run in found], _table(found))


def _table(found: "list[RunSummary]") -> Table:
    from cocomix.evaluation.pages import duration

    rows = []
    for run in found:
        at = f" at step {run.step:,}" if run.state in ("running", "stopped", "failed") else ""
        state = f"{run.state}{at}{f': {run.detail}' if run.detail else ''}"
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        rows.append((run.name, state, run.arm or "", f"{run.tokens:,}", loss, duration(run.age)))
    return table(rows, "run", "state", "arm", "tokens", "last loss, nats per token", "last written, ago", state=1)
