"""The verb `init`."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.printing import Printed, table

__all__ = ["init"]

logger = logging.getLogger(__name__)


def init(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A shipped recipe; without it they are listed.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the copy.")] = Path("recipes"),
) -> Printed:
    """Copy a commented recipe to start from.

    What is in the folder already is never overwritten.

    [dim]Example: cocomix init demo; cocomix train recipes/demo.yaml --dry-run[/dim]
    """
    from cocomix.experiments.shipped import copy_recipe, shipped_recipes

    if name is None:
        recipes = shipped_recipes()
        return Printed([recipe._asdict() for recipe in recipes], table(recipes))
    copied = copy_recipe(name, output)
    for path in copied.kept:
        logger.warning(f"{path} was there already and is kept as it is; {copied.recipe} starts from it.")
    for path in copied.added:
        logger.info(f"{path}, which it starts from")
    logger.info(f"{copied.recipe} is yours to change; next: cocomix train {copied.recipe} --dry-run")
    return Printed(
        {
            "recipe": str(copied.recipe),
            "added": [str(path) for path in copied.added],
            "kept": [str(path) for path in copied.kept],
        }
    )
