"""What long verbs say where standard error is no terminal: how far they are, and how long it will take."""

import re
from pathlib import Path

import pytest

from tests.command_line import Cli
from tests.workshop import BLOCK, VOCAB, Workshop

pytestmark = pytest.mark.usefixtures("progress_at_once")


def test_prepare(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    said = cli("prepare", workshop.corpus, "--vocab-size", VOCAB, "--block-size", BLOCK, "-o", tmp_path / "data").err
    assert "reading and encoding: 0 of 0 MB" in said
    assert re.search(r"packing: 0 of [\d,]+ tokens \(0%\)", said)


def test_label(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    made_with = ("--teacher", workshop.teacher, "--dictionary", workshop.dictionary)
    said = cli("label", workshop.data, *made_with, "-o", tmp_path / "labels").err
    assert re.search(r"label: 0 of [\d,]+ tokens \(0%\)", said)


def test_sae(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    sizes = ("--num-concepts", 16, "--k", 4, "--tokens", 4096, "--batch-size", 256)
    said = cli("sae", workshop.data, "--teacher", workshop.teacher, "--layer", 1, *sizes, "-o", tmp_path / "sae").err
    assert "fit dictionary: 0 of 4,096 tokens" in said


def test_train(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe_file(tmp_path / "r.yaml", "ntp", evaluation_blocks=3)
    said = cli("train", recipe, "-o", tmp_path / "run").err
    assert f"training: 0 of {12 * 8 * BLOCK:,} tokens (0%)" in said
    assert "final evaluation" in said


def test_eval_and_compare(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    said = cli("eval", workshop.cocomix_run).err
    assert "evaluating: " in said
    assert "measuring concept reliance: " in said
    assert "comparing: " in cli("compare", workshop.cocomix_run, workshop.ntp_run, "-o", tmp_path / "report").err


def test_atlas(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    said = cli("atlas", workshop.cocomix_run, "--tokens", 400, "--effects", 2, "-o", tmp_path / "atlas").err
    for phase in ("reading: 0 of 400 tokens", "describing: ", "measuring effects: 0 of 2 concepts"):
        assert phase in said


def test_verify_and_push(cli: Cli, workshop: Workshop) -> None:
    assert re.search(r"verify tokens: [\d,]+ of [\d,]+ bytes", cli("verify", workshop.data).err)
    assert "upload: 0 of " in cli("push", workshop.data, "memory://test-progress/data").err
