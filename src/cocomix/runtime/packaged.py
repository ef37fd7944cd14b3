"""Folders that come with cocomix: the recipes, and a trained student to look at."""

from pathlib import Path


def packaged_folder(name: str) -> Path:
    """A folder inside the installed package, or beside the source; it may be read-only."""
    package = Path(__file__).parents[1]
    packaged = package / name
    return packaged if packaged.is_dir() else package.parents[1] / name


def recipes_folder() -> Path:
    """The recipes; see `packaged_folder`."""
    return packaged_folder("recipes")
