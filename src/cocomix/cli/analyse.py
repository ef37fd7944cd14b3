"""The verb `analyse`."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import BatchBlocks, Output
from cocomix.cli.printing import Printed, values_table

__all__ = ["analyse"]


def analyse(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; those without concepts are left out.")
    ],
    output: Output,
    batch_size: BatchBlocks = 8,
    limit_blocks: Annotated[int | None, typer.Option(help="Use only the first validation blocks.")] = None,
    seed: Annotated[int, typer.Option(help="Of the shuffled concepts.")] = 0,
) -> Printed:
    """Show what the concepts of runs do, as one page.

    Concept reliance, lengths of compression vectors, recall by frequency, and statistics of the labels.

    [dim]Example: cocomix analyse runs/first runs/residual --output analyses[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.evaluation.analyses_report import analyse_runs
    from cocomix.runtime.device import default_device

    values = analyse_runs(
        [Run.open(folder) for folder in runs],
        output,
        device=default_device(),
        batch_size=batch_size,
        limit_blocks=limit_blocks,
        seed=seed,
    )
    deltas = {
        f"{name}: {kind}": each["nats"]
        for name, one in values["reliance"].items()
        for kind, each in one["kinds"].items()
    }
    unused = values["unused_compression_vectors"].items()
    shares = {f"{name}: compression vectors below 0.01": share for name, share in unused}
    return Printed(values, values_table(deltas | shares))
