"""Arguments and options that several verbs share. Several that belong together are a dataclass: see `application`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "BatchBlocks",
    "DataFolder",
    "OtherData",
    "OtherLabels",
    "Output",
    "Revision",
    "RunFolder",
    "Teacher",
]

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist yet.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
DataFolder = Annotated[Path, typer.Argument(metavar="DATA", help="Folder written by `cocomix prepare`.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `cocomix train`.")]
OtherData = Annotated[Path | None, typer.Option(help="Other prepared data; default: the run's own.")]
OtherLabels = Annotated[Path | None, typer.Option(help="Labels of that data.")]
BatchBlocks = Annotated[int, typer.Option(help="Blocks per forward pass.")]
Teacher = Annotated[str, typer.Option(help="Causal language model: Hub name, folder, run or GGUF file.")]
Revision = Annotated[str | None, typer.Option(help="Commit of a Hub teacher.")]
