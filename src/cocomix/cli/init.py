"""The verb `init`."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cocomix.cli.options import AsJson
from cocomix.cli.printing import print_json

__all__ = ["init"]

logger = logging.getLogger(__name__)


def init(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A shipped recipe; without it they are listed.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the copy.")] = Path("recipes"),
    json_output: AsJson = False,
) -> None:
    """Copy a commented recipe to start from.

    What is in the folder already is never overwritten.

    [dim]Example: cocomix init demo; cocomix train recipes/demo.yaml --dry-run[/dim]
    """
    from cocomix.experiments.shipped import copy_recipe, shipped_recipes

    if name is None:
        recipes = shipped_recipes()
        if json_output:
            print_json([recipe._asdict() for recipe in recipes])
        else:
            Console().print(_table([(recipe.name, recipe.summary) for recipe in recipes]))
        return
    copied = copy_recipe(name, output)
    for path in copied.kept:
        logger.warning(f"{path} was there already and is kept as it is; {copied.recipe} starts from it.")
    for path in copied.added:
        logger.info(f"{path}, which it starts from")
    logger.info(f"{copied.recipe} is yours to change; next: cocomix train {copied.recipe} --dry-run")
    if json_output:
        print_json({part: _names(paths) for part, paths in copied._asdict().items()})


def _names(paths: Path | tuple[Path, ...]) -> str | list[str]:
    return str(paths) if isinstance(paths, Path) else [str(path) for path in paths]


def _table(rows: list[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, summary in rows:
        table.add_row(name, escape(summary))
    return table
