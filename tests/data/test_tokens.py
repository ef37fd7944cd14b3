import json
from pathlib import Path

import pytest

from cocomix.artifacts import Damaged, NotAnArtifact, WrongKind, WrongVersion
from cocomix.data import PrepareSettings, Tokens, prepare
from cocomix.runtime.errors import CoCoMixError


@pytest.fixture
def folder(tmp_path: Path, corpus: Path) -> Path:
    settings = PrepareSettings(sources=(str(corpus),), vocab_size=300, block_size=16, tokens_per_file=320)
    return prepare(settings.model_copy(update={"validation_fraction": 0.2}), tmp_path / "out").path


def test_opening_reads_the_manifest_and_nothing_else(folder: Path) -> None:
    for path in (folder / "train-00000.npy", folder / "validation-00000.npy"):
        path.unlink()
    data = Tokens.open(str(folder))
    assert data.manifest.splits["train"].files[1].name == "train-00001.npy"
    with pytest.raises(Damaged) as error:
        data.split("train")[0]
    assert error.value.file == "train-00000.npy"
    with pytest.raises(CoCoMixError, match=r"'test'.* train, validation"):
        data.split("test")


def test_a_changed_file_is_found_before_it_is_used(folder: Path) -> None:
    path = folder / "train-00001.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-32] + content[-64:-32])
    with pytest.raises(Damaged, match=r"train-00001\.npy"):
        Tokens.open(folder).split("train")[-1 + 2 * 20]
    found = [finding.what for finding in Tokens.open(folder).verify().found if finding.state == "broken"]
    assert "train-00001.npy" in found


def test_the_tokenizer_belongs_to_it(folder: Path) -> None:
    data = Tokens.open(folder)
    assert data.tokenizer().decode(data.split("train")[0]["input_ids"])
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(Damaged, match=r"tokenizer\.json"):
        Tokens.open(folder).tokenizer()


def test_what_is_no_such_folder(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(NotAnArtifact, match="cocomix prepare"):
        Tokens.open(tmp_path / "nothing")
    manifest = json.loads((folder / "manifest.json").read_text())
    for change, error, says in (
        ({"version": 99}, WrongVersion, "99"),
        ({"kind": "labels"}, WrongKind, "labels"),
        ({"block_size": "many"}, Damaged, "block_size"),
        ({"surprise": 1}, Damaged, "surprise"),
        ({"files": {**manifest["files"], "../x": manifest["files"]["train-00000.npy"]}}, Damaged, r"\.\./x"),
    ):
        (folder / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(error, match=says):
            Tokens.open(folder)
    manifest["splits"]["train"]["blocks"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Damaged, match="blocks"):
        Tokens.open(folder)


def test_verify_counts_blocks_itself(folder: Path) -> None:
    """A manifest that claims more blocks than the files hold is not believed."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in manifest["splits"].values():
        split["blocks"] += 10**6
        split["files"][-1]["blocks"] += 10**6
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lying = {split["files"][-1]["name"] for split in manifest["splits"].values()}
    broken = {finding.what for finding in Tokens.open(folder).verify().found if finding.state == "broken"}
    assert broken == lying
    with pytest.raises(Damaged):
        Tokens.open(folder).split("train")[manifest["splits"]["train"]["blocks"] - 1]


def test_verify_looks_at_the_tokens_themselves(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"vocab_size": 30}))
    details = " ".join(finding.detail for finding in Tokens.open(folder).verify().found if finding.state == "broken")
    assert "beyond the vocabulary" in details
    (folder / "manifest.json").write_text(json.dumps(manifest | {"bos_token_id": 7}))
    details = " ".join(finding.detail for finding in Tokens.open(folder).verify().found if finding.state == "broken")
    assert "do not begin with token 7" in details
