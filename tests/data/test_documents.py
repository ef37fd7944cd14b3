import os
from pathlib import Path

import datasets
import pytest

from cocomix.data import PrepareSettings
from cocomix.data.documents import resolve_sources
from cocomix.data.units import plan_units, unit_parts
from cocomix.runtime.errors import CoCoMixError
from tests.data.conftest import write_jsonl


def read(*names: Path | str, column: str = "text") -> list[str]:
    """The documents of sources."""
    sources = resolve_sources(map(str, names), HUB)
    settings = PrepareSettings(sources=(), text_column=column, hf_config="en", hf_split="test", hf_revision="abc")
    units = plan_units(sources, column, None)
    return [str(part.content) for unit in units for part in unit_parts(unit, settings, 0)]


HUB = {"name": "en", "split": "test", "revision": "abc"}


def test_sources_are_read_in_order_without_empty_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first")
    write_jsonl(tmp_path / "b.jsonl", ["second", " \n", "", "third"])
    (tmp_path / "c.txt").write_text("\n  \n")
    assert read(tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.txt") == ["first", "second", "third"]


def test_a_folder_is_read_recursively_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/10.md", "a.txt", "c/d/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "data.bin").write_bytes(b"\0")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    assert read(tmp_path) == ["a.txt", "b/10.md", "b/2.txt", "c/d/e.txt"]
    assert resolve_sources([str(tmp_path)])[0].ignored == 1


@pytest.mark.parametrize(
    "name", ["missing.txt", "./missing", "/no/such/path", "a/b/c", "dir/missing.jsonl", "a b", "~/no"]
)
def test_a_missing_path_is_named(name: str) -> None:
    with pytest.raises(CoCoMixError, match=r"does not exist"):
        resolve_sources([name])


def test_unusable_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(CoCoMixError, match=r"a\.pdf.*\.txt"):
        resolve_sources([str(tmp_path / "a.pdf")])
    with pytest.raises(CoCoMixError, match="no file"):
        resolve_sources([str(tmp_path)])


def test_a_source_given_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(CoCoMixError, match=r"a\.txt .*twice"):
        resolve_sources([str(tmp_path), str(tmp_path / "." / "a.txt")])
    with pytest.raises(CoCoMixError, match=r"docs: .*twice"):
        resolve_sources(["docs:", "docs:"])


def test_hub_names_are_read_shard_by_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(path: str, **arguments: object) -> datasets.IterableDataset:
        calls.append((path, arguments))
        return datasets.Dataset.from_dict({"body": ["one", "two", "three"]}).to_iterable_dataset(num_shards=3)

    monkeypatch.setattr(datasets, "load_dataset", load)
    (source,) = resolve_sources(["owner/stories"], HUB)
    units = plan_units([source], "body", None)
    assert [[span.start for span in unit.spans] for unit in units] == [[0], [1], [2]]
    assert read("owner/stories", column="body") == ["one", "two", "three"]
    assert calls[0] == ("owner/stories", {"streaming": True, **HUB})
    with pytest.raises(CoCoMixError, match=r"stories.*row 0.*'text'.*'body'"):
        read("stories")


def test_bytes_of_a_hub_data_set_that_are_not_utf_8_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"text": ["café".encode(), b"caf\xe9 noir"]}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: rows)
    assert read("owner/stories") == ["café", "caf\ufffd noir"]


def test_a_real_data_set_through_the_hub_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` itself, on a local data set folder standing in for the Hub."""
    folder = tmp_path / "local"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ["one", "two"])
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: load(str(folder), streaming=True, split="train"))
    assert read("stand-in") == ["one", "two"]


def test_an_existing_path_wins_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner/stories").mkdir(parents=True)
    Path("owner/stories/a.txt").write_text("from the disk")
    assert read("owner/stories") == ["from the disk"]


def test_token_files_are_a_kind_of_their_own(tmp_path: Path) -> None:
    for name in ("both/train.bin", "both/val.bin", "many/a.ds", "many/b.ds", "many/a.ds.index", "alone.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\0")
    both, many, alone = resolve_sources([str(tmp_path / name) for name in ("both", "many", "alone.npy")])
    assert {source.kind for source in (both, many, alone)} == {"tokens"}
    assert [Path(file.where).name for file in (*both.files, *both.heldout)] == ["train.bin", "val.bin"]
    assert [Path(file.where).name for file in many.files] == ["a.ds", "b.ds"]


def test_identity_follows_names_sizes_and_times(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    identities = [resolve_sources([str(path)])[0].identity()]
    os.utime(path, ns=(1, 1))
    identities.append(resolve_sources([str(path)])[0].identity())
    path.write_text("other")
    identities.append(resolve_sources([str(path)])[0].identity())
    assert identities[0] != identities[1] != identities[2]
    assert resolve_sources([str(path)])[0].identity() == identities[2]
    assert resolve_sources([f"{path.parent}/"])[0].identity() == resolve_sources([str(path.parent)])[0].identity()
    assert resolve_sources(["docs:"])[0].identity() == resolve_sources(["docs:"])[0].identity()


def test_what_the_hub_does_not_give_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, **arguments: object) -> None:
        raise FileNotFoundError("Dataset 'x' doesn't exist\non the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(CoCoMixError, match=r"x .*Hub") as error:
        read("x")
    assert "\n" not in str(error.value)
