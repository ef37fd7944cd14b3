"""The recipes that come with cocomix, to start one's own from (`cocomix init`)."""

import difflib
import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cocomix.artifacts import write_text
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.recipes_folder import recipes_folder

__all__ = ["Copied", "ShippedRecipe", "copy_recipe", "shipped_recipes"]


class ShippedRecipe(NamedTuple):
    """A recipe that comes with cocomix.

    Attributes:
        name: its path without the suffix, e.g. `arms/pause`.
        summary: the first sentence of its comment.
    """

    name: str
    summary: str


class Copied(NamedTuple):
    """What `copy_recipe` did.

    Attributes:
        recipe: the copy.
        added: further files it starts from, likewise copied.
        kept: those of them that were there already, and were left as they are.
    """

    recipe: Path
    added: tuple[Path, ...]
    kept: tuple[Path, ...]


def shipped_recipes() -> list[ShippedRecipe]:
    """All of them, by name; those in folders last."""
    folder = recipes_folder()
    paths = [path.relative_to(folder) for path in folder.rglob("*.yaml") if path.parent.name != "launch"]
    names = [path.with_suffix("").as_posix() for path in paths]
    return [
        ShippedRecipe(name, _first_sentence(folder / f"{name}.yaml"))
        for name in sorted(names, key=lambda name: ("/" in name, name))
    ]


def copy_recipe(name: str, folder: Path) -> Copied:
    """Copy a recipe with its comments, and the recipes it starts from, in the places they have among one another.

    Args:
        name: as in `shipped_recipes`.
        folder: where to; made if it is not there.

    Raises:
        CoCoMixError: there is no such recipe; its copy is there already; the folder cannot be written.
    """
    name = name.removesuffix(".yaml")
    names = [recipe.name for recipe in shipped_recipes()]
    if name not in names:
        near = difflib.get_close_matches(
            name, [*names, *(known.rpartition("/")[2] for known in names)], n=1, cutoff=0.5
        )
        meant = [known for known in names if near and near[0] in (known, known.rpartition("/")[2])]
        hint = f"did you mean {meant[0]}? " if meant else ""
        raise CoCoMixError(f"no recipe is called {name!r}; {hint}`cocomix init` lists all.")
    recipe = folder / f"{name}.yaml"
    if recipe.exists():
        raise CoCoMixError(f"{recipe} is there already and is never overwritten; choose another --output.")
    others = [folder / path for path in _needed(Path(f"{name}.yaml"))]
    kept = tuple(path for path in others if path.exists())
    added = tuple(path for path in others if path not in kept)
    try:
        for path in (*added, recipe):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, (recipes_folder() / path.relative_to(folder)).read_text(encoding="utf-8"))
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise CoCoMixError(f"cannot write to {folder} ({error.strerror}); choose another --output.") from error
    return Copied(recipe, added, kept)


def _needed(recipe: Path) -> list[Path]:
    """The files that a shipped recipe or plan starts from, and those that these start from; relative paths."""
    found: list[Path] = []
    todo = [recipe]
    for current in todo:
        values = yaml.safe_load((recipes_folder() / current).read_text(encoding="utf-8"))
        for reference in _references(values):
            place = (recipes_folder() / current.parent / reference).resolve().relative_to(recipes_folder().resolve())
            if place != recipe and place not in found:
                found.append(place)
                todo.append(place)
    return found


def _references(values: dict[str, Any]) -> list[str]:
    """The recipes that a recipe (`base:`) or a sweep's plan (`arms:`) names."""
    arms = values.get("arms", {}).values()
    named = [values.get("base"), *(arm.get("base") if isinstance(arm, dict) else arm for arm in arms)]
    return [reference for reference in named if isinstance(reference, str)]


def _first_sentence(path: Path) -> str:
    """Of the comment at the top."""
    lines = path.read_text(encoding="utf-8").splitlines()
    paragraph = itertools.takewhile(lambda line: line.startswith("# "), lines)
    text = " ".join(line.removeprefix("# ").strip() for line in paragraph)
    for stop in re.finditer(r"(?<!\bFig)(?<!\bEq)(?<!\be\.g)\.(?= )", text):
        sentence = text[: stop.start()]
        if sentence.count("(") == sentence.count(")"):  # else the sentence goes on inside parentheses
            return sentence
    return text.removesuffix(".")
