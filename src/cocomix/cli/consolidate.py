"""The verb `consolidate`."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.application import Output, Quiet, app
from cocomix.runtime.console import ConsoleReporter

__all__ = ["consolidate"]


@app.command()
def consolidate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder checkpoint-STEP of a run with training.fsdp.")
    ],
    output: Output,
    quiet: Quiet = False,
) -> None:
    """Make one model of a sharded checkpoint.

    Finished runs hold the whole model already; this is for the checkpoints of one that is not.

    [dim]Example: cocomix consolidate runs/first.partial/checkpoints/checkpoint-100 --output model[/dim]
    """
    from cocomix.training.sharded_checkpoints import consolidate as run

    run(checkpoint, output)
    ConsoleReporter(quiet=quiet).say(f"the model of {checkpoint.name} is in {output}")
