"""The way from prepared data to a report, read off a recipe: which commands, and which of them is next.

A step is done when its folder is there. Nothing is remembered between commands, and nothing here imports PyTorch.
"""

import shlex
from pathlib import Path
from typing import Any, NamedTuple

from cocomix.artifacts import MANIFEST
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.recipe_file import recipe_values

_MANY_CONCEPTS = 4096  # beyond it a dictionary is fitted as published ones are: K_SAE 32, on more hidden states
_EVALUATIONS = "evaluations"
_INSIDE = (MANIFEST, _EVALUATIONS)  # what tells that the folder around it is done
_PLACES = (Path(), Path("recipes"))  # where recipes are looked for that read a folder of data


class Step(NamedTuple):
    """A command, and the folder that is there once it was given."""

    command: str
    made: Path


def sibling(recipe: Path, arm: str) -> Path:
    """Where the recipe of the baseline (`ntp`) or the teacher (`teacher`) lies beside a student's."""
    return recipe.with_name(f"{recipe.stem}_{arm}.yaml")


def steps_of(recipe: Path) -> list[Step]:
    """The commands after `cocomix prepare`, as far as a recipe tells them; refused where it cannot be read."""
    values = recipe_values(recipe)
    data, labels = values.get("data"), values.get("labels")
    steps: list[Step] = []
    if not isinstance(data, str):  # a mixture: there is more than one way
        return steps
    if isinstance(labels, dict):
        steps += _labelling(recipe, data, labels, values)
    arms = [path for path in (sibling(recipe, "ntp"), recipe) if path.is_file()]
    runs = [Path("runs") / path.stem for path in arms]
    steps += [Step(_command("train", path), run / MANIFEST) for path, run in zip(arms, runs, strict=True)]
    steps += [Step(_command("eval", run), run / _EVALUATIONS) for run in runs]
    report = Path("report") / recipe.stem
    if len(runs) > 1:
        steps.append(Step(_command("compare", *runs, "--output", report), report))
    return steps


def _labelling(recipe: Path, data: str, labels: dict[str, Any], values: dict[str, Any]) -> list[Step]:
    """Teacher, dictionary, and labels with what a student is distilled from: one command that makes two folders."""
    steps: list[Step] = []
    teacher, dictionary = labels.get("teacher"), labels.get("dictionary")
    if (own := sibling(recipe, "teacher")).is_file():
        steps.append(Step(_command("train", own), Path("runs") / own.stem / MANIFEST))
    if isinstance(teacher, dict) and isinstance(dictionary, dict) and "sae_id" not in dictionary:
        concepts = values.get("model", {}).get("num_concepts") or 2048
        words = ["sae", data, "--teacher", teacher["model"], "--layer", teacher["layer"], "--num-concepts", concepts]
        words += ["--k", 32, "--tokens", 250 * concepts] if concepts > _MANY_CONCEPTS else []
        steps.append(Step(_command(*words, "--output", dictionary["path"]), Path(dictionary["path"])))
    if (path := labels.get("path")) is not None:
        words = ["label", data, "--recipe", recipe]
        words += [] if Path(path) == Path(data) / "labels" else ["--output", path]
        made, targets = [path], (values.get("distillation") or {}).get("targets")
        if isinstance(teacher, dict) and isinstance(targets, str) and targets != "online":
            words, made = [*words, "--probabilities", targets], [path, targets]
        steps += [Step(_command(*words), Path(folder) / MANIFEST) for folder in made]
    return steps


def next_step(*made: Path) -> str | None:
    """The first step that is not done of the student's recipe, its baseline beside it, to which a folder belongs.

    Args:
        made: the folder that was just written, or the recipe it was made by.

    Returns:
        The command; `cocomix explore` where all are done; `None` where no recipe, or more than one, names the folder,
        or where data are missing and the recipe does not tell how they are prepared.
    """
    asked = {path.resolve() for path in made}
    found = []
    for recipe in sorted(path for place in _PLACES for path in place.glob("*.yaml")):
        if not sibling(recipe, "ntp").is_file():
            continue
        try:
            steps, data = steps_of(recipe), Path(recipe_values(recipe)["data"])
        except (CoCoMixError, TypeError, KeyError, AttributeError):  # not a recipe, or one that is not whole
            continue
        named = {data, recipe, sibling(recipe, "ntp"), sibling(recipe, "teacher")}
        named |= {step.made.parent if step.made.name in _INSIDE else step.made for step in steps}
        if asked & {path.resolve() for path in named}:
            found.append((recipe, steps, data))
    if len(found) != 1:
        return None
    ((recipe, steps, data),) = found
    if not data.exists():
        return _preparation(recipe)
    last = _command("explore", Path("runs") / recipe.stem)
    return next((step.command for step in steps if not step.made.exists()), last)


def _preparation(recipe: Path) -> str | None:
    """The command that prepares the data: in the comment at the head of a recipe that `cocomix init` has written."""
    lines = (line.strip("# ") for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((line for line in lines if line.startswith("cocomix prepare ")), None)


def _command(*words: object) -> str:
    return shlex.join(["cocomix", *map(str, words)])
