"""`cocomix label` in parts, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from cocomix.artifacts import partial_path, read_json
from tests.command_line import Cli
from tests.workshop import Workshop


def test_parts_and_finish(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    output = tmp_path / "labels"
    made_with = ("--teacher", workshop.teacher, "--dictionary", workshop.dictionary, "--output", output)
    assert json.loads(cli("label", workshop.data, *made_with, "--shard", "1/2", "--json").out) == {"finished": False}
    assert "shards are left to others" in cli("label", workshop.data, *made_with, "--shard", "1/2").err
    cli.refuses("label", workshop.data, "--finish", "-o", output, says="give the commands of their parts")
    manifest = json.loads(cli("label", workshop.data, *made_with, "--shard", "0/2", "--json").out)  # the last finishes
    assert manifest["fingerprint"] == read_json(workshop.labels / "manifest.json")["fingerprint"]
    assert not partial_path(output).exists()
    assert json.loads(cli("label", workshop.data, "--finish", "-o", output, "--json").out) == manifest


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--shard", "2/2"), "2/2"),
        (("--shard", "1/2", "--finish"), "give one of them"),
        (("--finish",), "does not exist"),
        (("--address", "auto"), "add --engine ray"),
        (("--gpus-per-worker", "1"), "add --engine ray"),
        (("--engine", "ray", "--cpus-per-worker", "0"), "0 CPU cores"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(cli: Cli, tmp_path: Path, options: Any, says: str) -> None:
    cli.refuses("label", tmp_path, "--teacher", "t", "--dictionary", "d", "--layer", 1, *options, says=says)
    assert not list(tmp_path.iterdir())
