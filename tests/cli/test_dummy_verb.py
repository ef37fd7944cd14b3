"""A verb that is none of ours: one file beside the others, and its name in `VERBS`."""

import json
from pathlib import Path

import pytest

import cocomix.cli
from cocomix.cli.application import VERBS
from tests.command_line import Cli
from tests.workshop import BLOCK, Workshop

TWO_STEPS = '''
"""The verb `two-steps`."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.printing import Printed


def two_steps(
    recipe: Annotated[Path, typer.Argument(help="A recipe.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write.")],
) -> Printed:
    """Train two steps of a recipe."""
    from cocomix.training import Run, train
    from cocomix.training.recipe import load_recipe

    run = Run.open(train(load_recipe(recipe, ["tokens=null", "training.max_steps=2"]), output))
    return Printed({"steps": run.manifest.steps})
'''


def test_it_is_one_file(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    recipe = workshop.recipe_file(tmp_path / "r.yaml", "ntp", tokens=9 * 8 * BLOCK)
    (tmp_path / "verbs").mkdir()
    (tmp_path / "verbs" / "two_steps.py").write_text(TWO_STEPS)
    monkeypatch.setattr(cocomix.cli, "__path__", [*cocomix.cli.__path__, str(tmp_path / "verbs")])
    monkeypatch.setitem(VERBS, "Train", (*VERBS["Train"], "two-steps"))
    assert "two-steps" in cli("--help").out
    assert "Train two steps of a recipe." in cli("two-steps", "--help").out
    done = cli("two-steps", recipe, "--output", tmp_path / "run", "--json", "--quiet")
    assert json.loads(done.out) == {"steps": 2}
    assert "two-steps" not in cli("two-steps", tmp_path / "none.yaml", "--output", tmp_path / "x", status=1).out
