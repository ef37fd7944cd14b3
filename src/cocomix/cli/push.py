"""The verb `push`."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.printing import Printed

logger = logging.getLogger(__name__)


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Data, labels, a dictionary, a run, …")],
    url: Annotated[str, typer.Argument(metavar="URL", help="Folder to write: s3://…, gs://…, hf://….")],
) -> Printed:
    """Upload a finished artefact, its manifest last.

    [dim]Example: cocomix push data/books s3://corpora/books[/dim]
    """
    import cocomix.interpret  # noqa: F401  # it imports every room that has artefacts
    from cocomix.artifacts import open_artifact

    written = open_artifact(folder).push(url)
    logger.info(f"{folder} is at {written}")
    return Printed({"url": written})
