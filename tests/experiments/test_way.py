"""What comes next: each command tells the one that follows, with the real paths, and it can be given as it stands."""

import shlex
import shutil
from pathlib import Path

import pytest

from cocomix.experiments import next_step
from tests.command_line import Cli
from tests.documents import TOY_OPTIONS
from tests.workshop import VOCAB, Workshop


def following(err: str) -> str:
    lines = [line.removeprefix("next: ") for line in err.splitlines() if line.startswith("next: ")]
    assert len(lines) == 1, err
    return lines[0]


def test_one_command_leads_to_the_next(
    cli: Cli, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `init` to the report by giving what the command before told, at toy size."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(workshop.corpus, "texts")
    answers = ("--teacher", workshop.teacher, "--size", "tiny", "--hardware", "cpu")
    command, verbs = following(cli("init", "--corpus", "texts", *answers).err), []
    assert following(cli("plan", "recipes/texts.yaml", "--seconds", 0).err) == command
    while "explore" not in command:
        _, verb, *words = shlex.split(command)
        verbs.append(verb)
        toy = shlex.split(TOY_OPTIONS.get(verb, ""))
        command = following(cli(verb, *words, *toy).err)
    assert verbs == ["prepare", "sae", "label", "train", "train", "eval", "eval", "compare"]
    assert command == "cocomix explore runs/texts"
    assert next_step(Path("data/texts")) == command
    assert next_step(tmp_path / "elsewhere") is None
    shutil.copy("recipes/texts.yaml", "recipes/again.yaml")
    shutil.copy("recipes/texts_ntp.yaml", "recipes/again_ntp.yaml")
    assert next_step(Path("data/texts")) is None  # two recipes read it


def test_without_a_recipe_the_next_command_is_of_what_is_known(
    cli: Cli, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--vocab-size", VOCAB, "--block-size", 16, "--validation-fraction", 0.2, "--output", "data")
    assert following(cli("prepare", workshop.corpus, *words).err) == "cocomix init --corpus data"
    assert cli("prepare", workshop.corpus, *words, "--quiet").err == ""
    run = workshop.ntp_run
    assert following(cli("eval", run, "--limit-blocks", 4).err) == f"cocomix explore {run}"
