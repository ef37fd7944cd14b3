"""The verb `push`."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.application import AsJson, Quiet, app, print_json
from cocomix.runtime.console import ConsoleReporter

__all__ = ["push"]


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Data, labels, a dictionary, a run, …")],
    url: Annotated[str, typer.Argument(metavar="URL", help="Folder to write: s3://…, gs://…, hf://….")],
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Upload a finished artefact, its manifest last.

    [dim]Example: cocomix push data/books s3://corpora/books[/dim]
    """
    from cocomix.artifacts.uploads import push as run

    written = run(folder, url)
    ConsoleReporter(quiet=quiet).say(f"{folder} is at {written}")
    if json_output:
        print_json({"url": written})
