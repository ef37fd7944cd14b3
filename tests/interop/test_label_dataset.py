"""Labels as a data set: read back by `datasets`, trained on, and uploaded as such."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from datasets import load_dataset

from cocomix.data import Tokens
from cocomix.interop import export_labels, label_dataset
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError
from tests.command_line import Cli
from tests.interop.test_hub import Hub, stand_in  # noqa: F401 - a fixture
from tests.workshop import BLOCK, CONCEPTS, Workshop


def test_datasets_reads_what_was_stored(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_dataset, "_BLOCKS_A_FILE", 30)
    folder = export_labels(workshop.labels, tmp_path / "out", data=workshop.data, license="mit", languages=("en",))
    labels, tokens = Labels.open(workshop.labels), Tokens.open(workshop.data)
    assert len(list((folder / "data").glob("train-*.parquet"))) > 1
    read = load_dataset(str(folder), cache_dir=str(tmp_path / "cache")).with_format("torch")
    assert set(read) == set(labels.manifest.splits)
    for split, rows in read.items():
        expected, ids = labels.split(split), tokens.split(split)
        assert len(rows) == len(expected)
        for index in (0, len(rows) - 1):
            assert torch.equal(rows[index]["concept_labels"], expected[index]["concept_labels"])
            assert torch.equal(rows[index]["input_ids"], ids[index]["input_ids"])
    assert rows[0]["concept_labels"].shape == (BLOCK, labels.manifest.k)
    header, card = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1:]
    about = yaml.safe_load(header)
    assert (about["license"], about["language"]) == ("mit", ["en"])
    assert f"| concepts | {CONCEPTS} |" in card
    assert str(workshop.folder) not in card  # paths on this machine are nobody else's business
    assert (folder / "tokenizer" / "tokenizer.json").is_file()
    assert json.loads((folder / "labels.json").read_text())["fingerprint"] == labels.fingerprint


def test_the_verb_uploads_a_dataset(workshop: Workshop, cli: Cli, stand_in: Hub, tmp_path: Path) -> None:  # noqa: F811
    arguments = ("export", workshop.labels, "--to", "datasets", "-o")
    done = cli(*arguments, tmp_path / "out", "--data", workshop.data, "--push", "me/labels", "--json")
    assert json.loads(done.out) == {"folder": str(tmp_path / "out"), "repository": "https://hub/me/me/labels"}
    assert stand_in.calls[-1][1]["repo_type"] == stand_in.calls[-2][1]["repo_type"] == "dataset"
    assert stand_in.calls[-1][1]["files"] == {"README.md", "data", "labels.json", "tokenizer"}
    cli.refuses(*arguments, tmp_path / "no", says=str(workshop.folder))  # the labels do not lie in their data
    cli.refuses(*arguments, tmp_path / "no", "--tokens", 3, says="--tokens")
    cli.refuses("export", workshop.ntp_run, *arguments[2:], tmp_path / "no", says="run")
    with pytest.raises(CoCoMixError, match="already exists"):
        export_labels(workshop.labels, tmp_path / "out", data=workshop.data)
    assert not (tmp_path / "no").exists()
