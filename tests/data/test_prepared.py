import json
from pathlib import Path

import pytest

from cocomix.data import PreparedData, PrepareSettings, prepare
from cocomix.runtime.errors import CoCoMixError


@pytest.fixture
def folder(tmp_path: Path, corpus: Path) -> Path:
    settings = PrepareSettings(sources=(str(corpus),), vocab_size=300, block_size=16, blocks_per_shard=20)
    return prepare(settings.model_copy(update={"validation_fraction": 0.2}), tmp_path / "out").path


def test_open_reads_no_tokens(folder: Path) -> None:
    size = (folder / "train" / "00000.arrow").stat().st_size
    (folder / "train" / "00000.arrow").write_bytes(b"x" * size)  # unreadable, but as large as it should be
    data = PreparedData.open(folder)
    with pytest.raises(CoCoMixError, match=r"train/00000\.arrow is damaged"):
        data.split("train")[0]


def test_splits_by_name(folder: Path) -> None:
    data = PreparedData.open(str(folder))
    assert data.split("train").meta == data.meta.splits["train"]
    assert data.split("train").shards[1].name == "train/00001"
    with pytest.raises(CoCoMixError, match="has no split 'test'; it has train, validation"):
        data.split("test")


@pytest.mark.parametrize(("damage", "message"), [("missing", "is missing"), ("truncated", "is truncated")])
def test_an_incomplete_folder_names_the_shard(folder: Path, damage: str, message: str) -> None:
    path = folder / "validation" / "00000.arrow"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CoCoMixError, match=rf"validation/00000\.arrow {message}"):
        PreparedData.open(folder)


def test_what_is_not_prepared_data(tmp_path: Path) -> None:
    with pytest.raises(CoCoMixError, match=r"nothing is not a folder of prepared data .* run cocomix prepare first"):
        PreparedData.open(tmp_path / "nothing")
    (tmp_path / "half.partial").mkdir()
    with pytest.raises(CoCoMixError, match="cocomix prepare did not finish there"):
        PreparedData.open(tmp_path / "half")


def test_other_or_damaged_descriptions(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    for change, message in (
        (meta | {"format_version": 99}, "has data format 99, and this version of cocomix reads format 1"),
        ([], "has data format None"),
        (meta | {"block_size": "many"}, r"meta\.json is damaged \(block_size: "),
        (meta | {"surprise": 1}, r"meta\.json is damaged \(surprise: "),
    ):
        (folder / "meta.json").write_text(json.dumps(change))
        with pytest.raises(CoCoMixError, match=message):
            PreparedData.open(folder)
    (folder / "meta.json").write_text("{")
    with pytest.raises(CoCoMixError, match="is not valid JSON"):
        PreparedData.open(folder)


def test_counts_that_contradict_each_other_are_damage(folder: Path) -> None:
    values = json.loads((folder / "meta.json").read_text())
    values["splits"]["train"]["blocks"] += 1
    (folder / "meta.json").write_text(json.dumps(values))
    with pytest.raises(CoCoMixError, match=r"damaged \(splits.train: .* are not those of the shards together\)"):
        PreparedData.open(folder)
