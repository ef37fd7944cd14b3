"""The verb `sweep`: arms × seeds from a plan, with a live table."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.table import Table

from cocomix.cli.printing import Printed, table
from cocomix.runtime.console import is_terminal, terminal
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from cocomix.experiments import Entry

__all__ = ["sweep"]

logger = logging.getLogger(__name__)


def sweep(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="YAML file; see recipes/paper_cpu.yaml.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Sweep folder; default sweeps/PLAN.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="A few steps of every arm, at the plan's fast: sizes.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, sharing the cores.")] = 1,
) -> Printed:
    """Train and compare all arms and seeds of a plan.

    Finished runs are kept, stopped ones go on, when the same command is given again. A run that fails does not stop
    the others; exit status 1 then, and no report.

    [dim]Example: cocomix sweep recipes/paper_cpu.yaml --fast[/dim]
    """
    from cocomix.artifacts import require_local
    from cocomix.experiments import load_plan, run_sweep
    from cocomix.experiments.runner import prepare_sweep

    if output is not None:
        require_local(output, "a sweep")
    loaded = load_plan(plan, output, fast=fast)
    todo, board = prepare_sweep(loaded)
    with (
        Live(get_renderable=lambda: _table(board.entries()), console=terminal(), refresh_per_second=1)
        if is_terminal() and logger.isEnabledFor(logging.INFO)
        else nullcontext()
    ):
        result = run_sweep(loaded, todo, board, workers=jobs)
    if result.comparison is not None:
        return Printed(result.to_json(), result.comparison.to_markdown())
    names = ", ".join(f"{entry.arm} seed {entry.seed}" for entry in result.missing)
    missing = CoCoMixError(
        f"{len(result.missing)} of {len(result.entries)} runs are missing ({names}), so there is no report; mend what "
        "stopped them and give the command again."
    )
    return Printed(result.to_json(), _table(list(result.entries)), missing)


def _table(entries: "list[Entry]") -> Table:
    rows = []
    for entry in entries:
        loss = "" if entry.loss is None else f"{entry.loss:.4f}"
        rows.append((entry.arm, str(entry.seed), entry.status, f"{entry.tokens:,}", loss))
    return table(rows, "arm", "seed", "state", "tokens", "validation loss", state=2)
