"""Where the recipes that come with cocomix lie, and what to say of one that was not copied from there."""

from pathlib import Path

from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.packaged import packaged_folder


class MissingRecipe(CoCoMixError):
    """There is no such recipe or plan; if one of that name comes with cocomix, the message says how to copy it."""


def recipes_folder() -> Path:
    """The shipped recipes: inside an installed package, or beside the source."""
    return packaged_folder("recipes")


def missing_recipe(path: Path) -> MissingRecipe:
    """The error for a recipe or plan that does not exist."""
    for name in (path.stem, f"{path.parent.name}/{path.stem}"):  # recipes/demo.yaml, recipes/arms/pause.yaml
        if (recipes_folder() / f"{name}.yaml").is_file():
            return MissingRecipe(f"{path} does not exist; `cocomix init {name}` copies the shipped one.")
    return MissingRecipe(f"{path} does not exist; `cocomix init --list` lists the recipes that come with cocomix.")
