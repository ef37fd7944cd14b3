"""The verb `push`."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.printing import Printed


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
    return Printed({"url": written}, note=f"{folder} is at {written}")
