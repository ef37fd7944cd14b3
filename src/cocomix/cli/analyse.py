"""The verb `analyse`."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import BatchBlocks, Output
from cocomix.cli.printing import Printed


def analyse(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; one without concepts is the control.")
    ],
    output: Output,
    batch_size: BatchBlocks = 8,
    limit_blocks: Annotated[int | None, typer.Option(help="Use only the first validation blocks.")] = None,
    seed: Annotated[int, typer.Option(help="Of the shuffled concepts.")] = 0,
) -> Printed:
    """Show what the concepts of runs do, as one page.

    Concept reliance, as a share of the gain over the control, recall by frequency, compression vectors, loss by token.

    [dim]Example: cocomix analyse runs/first runs/residual --output analyses[/dim]
    """
    from rich.console import Group

    from cocomix.evaluation import Run
    from cocomix.evaluation.analyses import analyse_runs
    from cocomix.evaluation.run_evaluation import loss_table, recall_table, reliance_table
    from cocomix.runtime.device import default_device

    result = analyse_runs(
        [Run.open(folder) for folder in runs],
        output,
        device=default_device(),
        batch_size=batch_size,
        limit_blocks=limit_blocks,
        seed=seed,
    )
    found = result.runs
    shown = [loss_table(found), recall_table(found), *map(reliance_table, found)]
    return Printed(result.model_dump(mode="json"), Group(*(table.rich() for table in shown if table is not None)))
