"""`cocomix atlas`: made, searched, and refused."""

import json
from dataclasses import asdict
from pathlib import Path

from cocomix.artifacts import read_json
from cocomix.interpret import AtlasManifest, ConceptAtlas, Context
from tests.command_line import Cli
from tests.workshop import CONCEPTS, Workshop


def test_an_atlas_is_made_and_read(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    run, output = workshop.cocomix_run, tmp_path / "atlas"
    made = cli("atlas", run, "--tokens", 400, "--effects", 2, "-o", output, "--json")
    assert json.loads(made.out) == read_json(output / "manifest.json")
    assert AtlasManifest.model_validate_json(made.out).settings.tokens == 400
    assert "held-out tokens" in made.err
    assert f"next: cocomix explore {run} --atlas {output}" in made.err
    assert "AUROC" in cli("atlas", run, "--tokens", 400, "--effects", 2, "-o", output).out
    atlas = ConceptAtlas.open(output)
    concept = atlas.top(1)[0].id
    hits = [hit._asdict() for hit in atlas.search("list")]
    card = json.loads(cli("atlas", run, "-o", output, "--concept", concept, "--json").out)
    assert card.keys() == asdict(atlas.card(concept)).keys()
    assert card["predicted_contexts"][0].keys() == set(Context._fields)
    assert json.loads(cli("atlas", run, "-o", output, "--search", "list", "--json").out) == hits
    shown = cli("atlas", run, "-o", output, "--concept", concept).out
    for part in (f"{concept}: {card['name']}", "raises", "nearest", "predicted, quantile 1.00"):
        assert part in shown
    assert str(hits[0]["id"]) in cli("atlas", run, "-o", output, "--search", "list").out
    cli.refuses("atlas", run, "-o", output, says="already exists")
    nothing = cli("atlas", run, "-o", output, "--search", "zzzq")
    assert nothing.out == ""
    assert "'zzzq'" in nothing.err
    assert cli("atlas", run, "-o", output, "--search", "zzzq", "--json").out.strip() == "[]"
    cli.refuses("atlas", run, "-o", output, "--concept", CONCEPTS, says=f"concept {CONCEPTS} does not exist")
    cli.refuses("atlas", run, "-o", output, "--concept", 1, "--search", "a", says="ask one at a time")
    cli.refuses("atlas", workshop.ntp_run, "-o", output, "--search", "a", says="is of another run (mixed)")


def test_a_hundred_tokens_are_enough(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    made = cli("atlas", workshop.cocomix_run, "--tokens", 100, "-o", tmp_path / "atlas", "--json")
    assert json.loads(made.out)["tokens"] == 96


def test_a_finished_atlas_is_named_where_another_cannot_be_made(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    run, output = workshop.cocomix_run, tmp_path / "atlas"
    cli("atlas", run, "--tokens", 400, "--effects", 2, "-o", output)
    for other in (("--tokens", 500), ("--data", tmp_path / "gone")):
        assert "--concept ID" in cli.refuses("atlas", run, "-o", output, *other, says=str(output))


def test_what_cannot_be_made_or_found(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    run = workshop.cocomix_run
    cli.refuses("atlas", workshop.ntp_run, "-o", tmp_path / "a", says="has no concepts")
    cli.refuses("atlas", run, "--search", "a", "-o", tmp_path / "none", says="make it with `cocomix atlas`")
    cli.refuses("atlas", tmp_path / "gone", says="does not exist")
    cli.refuses("atlas", run, "-o", tmp_path / "a", "--tokens", 0, says="tokens")
    cli.refuses("atlas", run, "-o", tmp_path / "a", "--name-endpoint", "nowhere", says="no address of an endpoint")
    assert list(tmp_path.iterdir()) == []
