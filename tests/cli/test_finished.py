"""A finished command given again: nothing to do, told at once; with other settings, refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cocomix.labelling import Labels
from tests.command_line import Cli
from tests.workshop import Workshop

AGAIN = """
import sys
from cocomix.cli import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
print("HEAVY", *sorted({"torch", "transformers", "datasets"} & set(sys.modules)), file=sys.stderr)
"""


def again(*words: object) -> str:
    command = [sys.executable, "-c", AGAIN, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_train(cli: Cli, here: Path, workshop: Workshop) -> None:
    recipe = workshop.recipe_file(here / "r.yaml", "ntp")
    cli("train", recipe, "--set", "tokens=128", "-o", "run")
    said = again("train", recipe, "--set", "tokens=128", "-o", "run")
    assert "nothing to do" in said
    assert said.splitlines()[-1] == "HEAVY"
    cli.refuses("train", recipe, "--set", "tokens=256", "-o", "run", says="recipe")


@pytest.mark.slow
def test_a_run_is_not_taken_for_one_of_labels_made_anew(cli: Cli, here: Path, workshop: Workshop) -> None:
    label = ("label", workshop.data, "--kind", "future_words", "-o", "labels", "--set")
    cli(*label, "k=2")
    model = {"mixing": "add", "num_concepts": Labels.open("labels").num_concepts}
    recipe = workshop.recipe_file(here / "r.yaml", "cocomix", model=model, labels="labels")
    command = ("train", recipe, "--set", "tokens=128", "-o", "run")
    cli(*command)
    shutil.move("labels", "kept")
    assert "nothing to do" in again(*command)  # labels may be gone
    cli(*label, "k=3")
    cli.refuses(*command, says="labels")
    shutil.rmtree("labels")
    cli(*label, "k=2")
    assert "nothing to do" in again(*command)


@pytest.mark.slow
def test_sae(cli: Cli, here: Path, workshop: Workshop) -> None:
    options = ("--teacher", workshop.teacher, "--layer", 1, "--num-concepts", 40, "--tokens", 64, "--batch-size", 32)
    cli("sae", workshop.data, *options, "--k", 4, "-o", "sae")
    said = again("sae", workshop.data, *options, "--k", 4, "-o", "sae")
    assert "nothing to do" in said
    assert said.splitlines()[-1] == "HEAVY"
    cli.refuses("sae", workshop.data, *options, "--k", 5, "-o", "sae", says="settings")
    cli.refuses("sae", workshop.data, *options, "--k", 4, "--dtype", "bfloat16", "-o", "sae", says="settings.dtype")
