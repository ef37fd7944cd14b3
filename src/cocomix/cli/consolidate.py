"""The verb `consolidate`."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import Output

__all__ = ["consolidate"]

logger = logging.getLogger(__name__)


def consolidate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder checkpoint-STEP of a run with training.fsdp.")
    ],
    output: Output,
) -> None:
    """Make one model of a sharded checkpoint.

    Finished runs hold the whole model already; this is for the checkpoints of one that is not.

    [dim]Example: cocomix consolidate runs/first.partial/checkpoints/checkpoint-100 --output model[/dim]
    """
    from cocomix.training.sharded_checkpoints import consolidate as run

    run(checkpoint, output)
    logger.info(f"the model of {checkpoint.name} is in {output}")
