"""The recipes that come with cocomix, to start one's own from (`cocomix init`)."""

import difflib
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import yaml

from cocomix.artifacts import write_text
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.packaged import recipes_folder


class ShippedRecipe(NamedTuple):
    """A recipe's path without the suffix, e.g. `arms/pause`, and the first sentence of its comment."""

    name: str
    summary: str


class Copied(NamedTuple):
    """What `copy_recipe` did: the copy, the files it starts from that were added, and those that were there already."""

    recipe: Path
    added: tuple[Path, ...]
    kept: tuple[Path, ...]


def shipped_recipes() -> list[ShippedRecipe]:
    """All of them, by name; those in folders last."""
    folder = recipes_folder()
    paths = [path.relative_to(folder) for path in folder.rglob("*.yaml") if path.parent.name != "launch"]
    names = sorted((path.with_suffix("").as_posix() for path in paths), key=lambda name: ("/" in name, name))
    return [ShippedRecipe(name, _first_sentence(folder / f"{name}.yaml")) for name in names]


def copy_recipe(name: str, folder: Path) -> Copied:
    """Copy a recipe with its comments, and the recipes it starts from, in the places they have among one another.

    Refused where there is no such recipe, its copy is there already, or the folder cannot be written.
    """
    name = name.removesuffix(".yaml")
    names = [recipe.name for recipe in shipped_recipes()]
    if name not in names:
        by_last_part = {known.rpartition("/")[2]: known for known in names} | {known: known for known in names}
        near = difflib.get_close_matches(name, list(by_last_part), n=1, cutoff=0.5)
        hint = f"did you mean {by_last_part[near[0]]}? " if near else ""
        raise CoCoMixError(f"no recipe is called {name!r}; {hint}`cocomix init --list` lists all.")
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
    except OSError as error:
        raise CoCoMixError(f"cannot write to {folder} ({error.strerror}); choose another --output.") from error
    return Copied(recipe, added, kept)


def _needed(recipe: Path) -> list[Path]:
    """The files that a recipe (`base:`) or a plan (`arms:`, `teacher:`) starts from, and theirs in turn."""
    found: list[Path] = []
    todo, root = [recipe], recipes_folder().resolve()
    for current in todo:
        values = yaml.safe_load((root / current).read_text(encoding="utf-8"))
        named = [values.get("base"), *values.get("arms", {}).values(), (values.get("teacher") or {}).get("recipe")]
        for reference in (each.get("base") if isinstance(each, dict) else each for each in named):
            if isinstance(reference, str):
                place = (root / current.parent / reference).resolve().relative_to(root)
                if place != recipe and place not in found:
                    found.append(place)
                    todo.append(place)
    return found


def _first_sentence(path: Path) -> str:
    """Of the comment at the top."""
    lines = itertools.takewhile(lambda line: line[:2] == "# ", path.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.removeprefix("# ").strip() for line in lines)
    for stop in re.finditer(r"(?<!\bFig)(?<!\bEq)(?<!\be\.g)\.(?= )", text):
        sentence = text[: stop.start()]
        if sentence.count("(") == sentence.count(")"):  # else the sentence goes on inside parentheses
            return sentence
    return text.removesuffix(".")
