"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "DataFolder", "Output", "RunFolder"]

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist yet.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
DataFolder = Annotated[Path, typer.Argument(metavar="DATA", help="Folder written by `cocomix prepare`.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `cocomix train`.")]
