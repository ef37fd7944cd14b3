"""The verb `demo`."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.printing import Printed


def demo(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder for everything.")] = Path("cocomix-demo"),
    fast: Annotated[bool, typer.Option(help="Shorter, and too short to learn much.")] = False,
) -> Printed:
    """Try the whole method on this machine: four to eight minutes.

    The text is the documentation of what is installed here. The teacher, 93 MB, comes from the package index; where no
    index can be reached, one is trained.

    Finished parts are kept: a second run, or one after a stop, goes on where it was.

    [dim]Example: cocomix demo --fast[/dim]
    """
    from cocomix.artifacts import require_local
    from cocomix.evaluation import shown
    from cocomix.experiments.tour import run_demo
    from cocomix.runtime.device import choose_threads

    require_local(directory, "the demo's folder")
    choose_threads()
    result = run_demo(directory, fast=fast)
    assert result.comparison is not None
    return Printed({"folder": str(directory), "report": str(result.report)}, shown(result.comparison))
