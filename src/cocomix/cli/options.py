"""Arguments and options that several verbs share. Several that belong together are a dataclass: see `application`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from cocomix.runtime.errors import CoCoMixError

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist yet.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
DataFolder = Annotated[Path, typer.Argument(metavar="DATA", help="Folder written by `cocomix prepare`.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `cocomix train`.")]
RunOrExample = Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `cocomix train`; or --example.")]
"""Gives its verb the flag `--example`; see `application`."""
Example = Annotated[bool, typer.Option("--example", help="In the place of RUN: the student that comes with cocomix.")]
OtherData = Annotated[Path | None, typer.Option(help="Other prepared data; default: the run's own.")]
OtherLabels = Annotated[Path | None, typer.Option(help="Labels of that data.")]
BatchBlocks = Annotated[int, typer.Option(help="Blocks per forward pass.")]
Teacher = Annotated[str, typer.Option(help="Causal language model: Hub name, folder, run or GGUF file.")]
Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file; see the recipes folder.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a field; repeatable.")]
Revision = Annotated[str | None, typer.Option(help="Commit of a Hub teacher.")]


def part_of(option: str, text: str) -> tuple[int, int]:
    """Number of a part, from 0, and of all parts, from an option's `I/N`; refused where there is no such part."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    number, parts = map(int, found.groups()) if found else (0, 0)
    if number >= parts:
        raise CoCoMixError(f"{option} {text} is not of the form I/N with I from 0 to N - 1, such as 0/8.")
    return number, parts
