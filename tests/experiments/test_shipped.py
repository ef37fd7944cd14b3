"""`cocomix init`: the shipped recipes, copied with what they start from, and never over anything."""

import json
from pathlib import Path

import pytest

from cocomix.experiments.shipped import copy_recipe, shipped_recipes
from cocomix.runtime.packaged import recipes_folder
from cocomix.training.recipe import load_recipe
from cocomix.training.recipe_file import recipe_values
from tests.command_line import Cli

NAMES = [recipe.name for recipe in shipped_recipes()]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_are_listed(cli: Cli, here: Path) -> None:
    shown = json.loads(cli("init", "--list", "--json").out)
    assert {row["name"] for row in shown} == set(NAMES)
    assert all(row["summary"] for row in shown)
    assert "arms/pause" in cli("init", "--list").out
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_copies_can_be_used(name: str, tmp_path: Path) -> None:
    """Comments and all, and with every file that it names."""
    copied = copy_recipe(name, tmp_path)
    for path in (copied.recipe, *copied.added):
        assert path.read_text() == (recipes_folder() / path.relative_to(tmp_path)).read_text()
    assert copied.kept == ()
    values = recipe_values(copied.recipe)
    arms = values.get("arms")
    if arms is None:
        assert load_recipe(copied.recipe) == load_recipe(recipes_folder() / f"{name}.yaml")
    else:
        bases = [arm if isinstance(arm, str) else arm["base"] for arm in arms.values()]
        assert all((copied.recipe.parent / base).is_file() for base in bases)


def test_summaries_are_whole_sentences() -> None:
    summaries = {recipe.name: recipe.summary for recipe in shipped_recipes()}
    assert summaries["arms/pause"].startswith("Pause tokens (paper, Fig. 6f): one learned vector")
    assert summaries["arms/labels_next"].endswith("the paper's Eq. 1")
    for summary in summaries.values():
        assert summary.count("(") == summary.count(")")


def test_nothing_is_overwritten(cli: Cli, here: Path) -> None:
    first = cli("init", "arms/pause")
    assert "next: cocomix plan recipes/arms/pause.yaml" in first.err
    base = here / "recipes" / "corpus_cocomix.yaml"
    assert "recipes/corpus_cocomix.yaml, which it starts from" in first.err
    base.write_text("objective: ntp\n")
    cli.refuses("init", "arms/pause", says="never overwritten")
    done = cli("init", "arms/add.yaml", "--json")
    assert "kept as it is" in done.err
    assert json.loads(done.out) == {
        "recipe": "recipes/arms/add.yaml",
        "added": [],
        "kept": ["recipes/corpus_cocomix.yaml"],
    }
    assert base.read_text() == "objective: ntp\n"
    assert cli("init", "demo", "-o", "elsewhere", "-q").err == ""
    assert (here / "elsewhere" / "demo.yaml").is_file()
    assert "cocomix plan 'my recipes/demo.yaml'" in cli("init", "demo", "-o", "my recipes").err


def test_names_that_are_none(cli: Cli, here: Path) -> None:
    assert "did you mean arms/pause?" in cli.refuses("init", "puase", says="no recipe is called 'puase'")
    cli.refuses("init", "../demo", says="no recipe is called")
    (here / "recipes").write_text("a file")
    cli.refuses("init", "demo", says="choose another --output")
