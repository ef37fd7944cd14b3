import gzip
from pathlib import Path

import datasets
import pytest

from cocomix.data import formats
from cocomix.data.documents import Document, read_documents, resolve_sources
from cocomix.runtime.errors import CoCoMixError
from tests.data.conftest import write_jsonl


def read(*names: Path | str, column: str = "text") -> list[Document]:
    return list(read_documents(resolve_sources(map(str, names)), column))


def test_documents_are_numbered_across_sources(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first")
    write_jsonl(tmp_path / "b.jsonl", ["second", " \n", "", "third"])
    found = read(tmp_path / "a.txt", tmp_path / "b.jsonl")
    assert [(document.text, document.number, Path(document.source).name) for document in found] == [
        ("first", 0, "a.txt"),
        ("second", 1, "b.jsonl"),
        ("third", 2, "b.jsonl"),
    ]
    assert all(document.last for document in found)


def test_a_folder_is_read_recursively_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/10.md", "a.txt", "c/d/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "data.bin").write_bytes(b"\0")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    assert [document.text for document in read(tmp_path)] == ["a.txt", "b/10.md", "b/2.txt", "c/d/e.txt"]
    assert resolve_sources([str(tmp_path)])[0].ignored == 1


def test_bytes_read_add_up_to_the_input(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", ["one", "", "two"])
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text " * 100))
    sources = resolve_sources([str(tmp_path)])
    assert sum(document.read for document in read_documents(sources)) == sources[0].input_bytes()


def test_a_long_text_comes_in_pieces_of_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "PIECE_CHARACTERS", 1000)
    text = "".join(f"Paragraph {i} of the text.\n\n" for i in range(300_000))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("another")
    *found, other = read(tmp_path)
    assert "".join(document.text for document in found) == text
    assert len(found) > 1
    assert [document.last for document in found] == [False] * (len(found) - 1) + [True]
    assert {document.number for document in found} == {0}
    assert (other.text, other.number) == ("another", 1)


@pytest.mark.parametrize(
    "name", ["missing.txt", "./missing", "/no/such/path", "a/b/c", "dir/missing.jsonl", "a b", "~/no"]
)
def test_a_missing_path_is_named(name: str) -> None:
    with pytest.raises(CoCoMixError, match=r"does not exist; give a file, a folder"):
        resolve_sources([name])


def test_unusable_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(CoCoMixError, match=r"a\.pdf is not a supported kind of file; use \.txt"):
        resolve_sources([str(tmp_path / "a.pdf")])
    with pytest.raises(CoCoMixError, match="holds no file of a supported kind"):
        resolve_sources([str(tmp_path)])


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_a_source_without_text_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "full.txt").write_text("text")
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(CoCoMixError, match=r"empty\.txt holds no documents"):
        read(tmp_path / "full.txt", tmp_path / "empty.txt")


def test_a_source_given_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(CoCoMixError, match=r"a\.txt is given twice"):
        resolve_sources([str(tmp_path), str(tmp_path / "." / "a.txt")])
    with pytest.raises(CoCoMixError, match="docs: is given twice"):
        resolve_sources(["docs:", "docs:"])


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(path: str, **arguments: object) -> datasets.IterableDataset:
        calls.append((path, arguments))
        rows = datasets.Dataset.from_dict(
            {"body": ["one", "two \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]}
        )
        return rows.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    sources = resolve_sources(["owner/stories"], hf_config="en", hf_split="test", hf_revision="abc")
    assert [document.text for document in read_documents(sources, "body")] == ["one", "two 😀"]
    assert calls == [("owner/stories", {"streaming": True, "name": "en", "split": "test", "revision": "abc"})]
    assert sources[0].input_bytes() is None
    with pytest.raises(CoCoMixError, match=r"stories, row 0: there is no column 'text'; the columns are 'body'"):
        list(read_documents(resolve_sources(["stories"])))


def test_a_real_data_set_through_the_hub_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` itself, on a local data set folder standing in for the Hub."""
    folder = tmp_path / "local"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ["one", "two"])
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **arguments: load(str(folder), **arguments))
    found = list(read_documents(resolve_sources(["stand-in"], hf_config=None)))
    assert [document.text for document in found] == ["one", "two"]


def test_an_existing_path_wins_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner/stories").mkdir(parents=True)
    Path("owner/stories/a.txt").write_text("from the disk")
    assert [document.text for document in read("owner/stories")] == ["from the disk"]


def test_what_the_hub_does_not_give_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, **arguments: object) -> None:
        raise FileNotFoundError("Dataset 'x' doesn't exist\non the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        CoCoMixError, match=r"x is not a path here, and not a data set .* doesn't exist on the Hub\)"
    ) as error:
        list(read_documents(resolve_sources(["x"])))
    assert "\n" not in str(error.value)
