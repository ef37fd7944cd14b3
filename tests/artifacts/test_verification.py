"""`cocomix verify` on whole artefacts, and on ones with one thing wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.artifacts import MANIFEST, Damaged, NotAnArtifact, WrongKind, partial_path, read_json, verify, write_json
from cocomix.evaluation import Run
from cocomix.interpret import build_atlas
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from tests.command_line import Cli
from tests.interpret.conftest import ATLAS
from tests.training.test_resume import Killed, kill_at, recipe
from tests.workshop import Workshop


@pytest.fixture(scope="module")
def atlas(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("atlas") / "atlas"
    build_atlas(Run.open(workshop.cocomix_run), output, ATLAS, device=torch.device("cpu"))
    return output


def flip(path: Path, at: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def copy(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / source.name))


def states(path: Path) -> dict[str, str]:
    return {finding.what: finding.state for finding in verify(path).found}


def test_whole_artefacts(workshop: Workshop, atlas: Path) -> None:
    kinds = {
        workshop.data: "tokens",
        workshop.labels: "labels",
        workshop.probabilities: "teacher_probabilities",
        workshop.dictionary: "dictionary",
        workshop.cocomix_run: "run",
        workshop.ntp_run: "run",
        atlas: "atlas",
    }
    for path, kind in kinds.items():
        found = verify(path)
        assert found.kind == kind
        assert not found.broken
        assert found.to_json()["whole"]
    assert states(workshop.labels)["teacher"] == states(workshop.labels)["dictionary"] == "ok"
    assert states(workshop.cocomix_run)["labels"] == states(workshop.cocomix_run)["data"] == "ok"
    assert states(workshop.cocomix_run)["model.safetensors"] == "ok"
    assert states(workshop.dictionary)["teacher"] == "ok"


def test_labels_within_their_data(workshop: Workshop, tmp_path: Path) -> None:
    data = copy(workshop.data, tmp_path)
    labels = copy(workshop.labels, data)
    assert states(labels)["data"] == "ok"
    meta = read_json(data / "manifest.json")
    write_json(data / "manifest.json", {**meta, "fingerprint": "0"})
    assert states(labels)["data"] == "broken"
    assert states(data)["fingerprint"] == "broken"


def damage_manifest(name: str, field: str, value: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        write_json(folder / name, {**read_json(folder / name), field: value})

    return damage


@pytest.mark.parametrize(
    ("artefact", "damage", "broken", "says"),
    [
        ("data", lambda p: flip(p / "train-00001.npy", -400), "train-00001.npy", "cocomix prepare"),
        ("data", lambda p: flip(p / "tokenizer/tokenizer.json", 600), "tokenizer/tokenizer.json", ""),
        ("labels", lambda p: flip(p / "train-00001.ids.npy", -400), "train-00001.ids.npy", "delete"),
        ("labels", lambda p: (p / "train-00001.ids.npy").unlink(), "train-00001.ids.npy", "only that"),
        ("labels", damage_manifest("manifest.json", "num_concepts", 99), "fingerprint", "cocomix label"),
        (
            "probabilities",
            lambda p: flip(p / "validation-00000.log_probs.npy", -100),
            "validation-00000.log_probs.npy",
            "delete",
        ),
        ("probabilities", damage_manifest("manifest.json", "top_k", 4), "fingerprint", "cocomix distill"),
        ("dictionary", lambda p: flip(p / "sae_weights.safetensors"), "sae_weights.safetensors", "changed"),
        ("dictionary", lambda p: (p / "cfg.json").write_bytes(b"{}"), "cfg.json", "bytes"),
        ("cocomix_run", lambda p: flip(p / "model.safetensors"), "model.safetensors", "cocomix train"),
        ("cocomix_run", lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json", "missing"),
        ("cocomix_run", lambda p: flip(p / "recipe.yaml"), "recipe.yaml", "changed"),
    ],
)
def test_one_thing_wrong(
    workshop: Workshop, tmp_path: Path, artefact: str, damage: Any, broken: str, says: str
) -> None:
    path = copy(getattr(workshop, artefact), tmp_path)
    damage(path)
    found = verify(path)
    assert found.broken[0].what == broken
    assert says in found.broken[0].detail
    assert str(path) in found.broken[0].detail or broken in found.broken[0].detail


def test_a_damaged_atlas(atlas: Path, tmp_path: Path) -> None:
    path = copy(atlas, tmp_path)
    flip(path / "cards.parquet")
    assert "cards.parquet" in [finding.what for finding in verify(path).broken]


def test_a_source_that_was_exchanged(workshop: Workshop, tmp_path: Path) -> None:
    path = copy(workshop.labels, tmp_path)
    manifest = read_json(path / "manifest.json")
    manifest["labels"]["teacher"]["model"] = str(workshop.ntp_run)
    write_json(path / "manifest.json", manifest)
    (found,) = verify(path).broken
    assert found.what == "teacher"
    assert "no longer what this was made from" in found.detail


def test_unfinished_runs_and_checkpoints(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        kill_at(patched, 11)
        with pytest.raises(Killed):
            train(recipe(workshop), tmp_path / "run")
    partial = partial_path(tmp_path / "run")
    assert states(partial) == {"checkpoint-4": "ok", "checkpoint-8": "ok", "the rest": "not checked"}
    flip(partial / "checkpoints/checkpoint-8/optimizer.pt")
    (found,) = verify(partial).broken
    assert "checkpoint-8/optimizer.pt has changed since it was written; remove it" in found.detail
    assert verify(partial / "checkpoints/checkpoint-8").broken
    assert not verify(partial / "checkpoints/checkpoint-4").broken
    (partial / "checkpoints/checkpoint-4" / MANIFEST).unlink()
    assert "checkpoint-4" in verify(partial).broken[0].detail


@pytest.mark.parametrize("shape", ["empty", "other", "file"])
def test_what_is_not_ours_is_refused(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "x"
    if shape == "file":
        path.write_text("x")
    else:
        path.mkdir()
    if shape == "other":
        write_json(path / "manifest.json", {"kind": "poem"})
    with pytest.raises((NotAnArtifact, WrongKind), match=str(path)):
        verify(path)


def test_on_the_command_line(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    assert "labels, format 2" in cli("verify", workshop.labels).err
    printed = json.loads(cli("verify", workshop.labels, "--json").out)
    assert printed["whole"]
    path = copy(workshop.labels, tmp_path)
    for file in ("train-00000", "train-00001"):
        flip(path / f"{file}.ids.npy", -400)
    result = cli("verify", path, "--json", status=1)
    assert not json.loads(result.out)["whole"]
    assert f"{path / 'train-00000'}.ids.npy has changed" in result.err
    assert " more)" in result.err
    cli.refuses("verify", tmp_path, says="nothing that cocomix wrote")
    cli.refuses("verify", tmp_path / "absent", says="make it with `cocomix VERB`")


# --- names that lead out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../other/00000", "/etc/passwd", "train/../../x", "train/a/b"])
def test_manifests_name_no_files_elsewhere(workshop: Workshop, tmp_path: Path, name: str) -> None:
    labels = copy(workshop.labels, tmp_path)
    manifest = read_json(labels / "manifest.json")
    manifest["splits"]["train"][0]["name"] = name
    write_json(labels / "manifest.json", manifest)
    with pytest.raises(CoCoMixError, match="damaged"):
        Labels.open(labels)


def test_a_run_that_names_a_file_elsewhere(workshop: Workshop, tmp_path: Path) -> None:
    run = copy(workshop.ntp_run, tmp_path)
    (tmp_path / "secret").write_text("x")
    manifest = read_json(run / "manifest.json")
    write_json(run / "manifest.json", {**manifest, "files": {"../secret": manifest["files"]["config.json"]}})
    with pytest.raises(Damaged, match="secret"):
        verify(run)
