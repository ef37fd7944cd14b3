"""The verb that does everything once: demo."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.application import Quiet, app
from cocomix.reporter import ConsoleReporter

__all__ = ["demo"]


@app.command()
def demo(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder for everything.")] = Path("cocomix-demo"),
    fast: Annotated[bool, typer.Option(help="Two to three minutes; too short to learn much.")] = False,
    quiet: Quiet = False,
) -> None:
    """The whole method on this machine's documentation: ten minutes.

    Finished stages are kept: a second run, or one after a stop, goes on where it was.
    """
    from cocomix.demo import run_demo

    run_demo(directory, fast=fast, reporter=ConsoleReporter(quiet=quiet))
