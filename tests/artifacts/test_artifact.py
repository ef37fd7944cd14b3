"""Reading artefacts: manifests, files at their first use, verification."""

import json
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cocomix.artifacts import (
    AlreadyExists,
    Artifact,
    BeingWritten,
    Damaged,
    MadeFromSomethingElse,
    Manifest,
    NotAnArtifact,
    WrongKind,
    WrongVersion,
    file_sha256,
    open_artifact,
    read_json,
    verify,
    write_json,
)
from tests.artifacts.conftest import Poem, make_poem


class Novel(Artifact[Manifest]):
    kind = "novel"
    manifest_type = Manifest
    made_by = "cocomix write"


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301


def spoil(path: Path, at: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def states(poem: Poem) -> dict[str, str]:
    return {finding.what: finding.state for finding in poem.verify().found}


def test_what_a_manifest_says(tmp_path: Path) -> None:
    poem = make_poem(tmp_path / "out", seed=3)
    manifest = poem.manifest
    assert (manifest.kind, manifest.version, manifest.lines) == ("poem", 2, 1)
    assert (manifest.identity, manifest.made_from) == ({"seed": 3}, {"muse": "0"})
    assert set(manifest.files) == {"title.txt", "verses/1.txt"}
    assert poem.file("verses/1.txt").read_text() == "roses\n"
    assert make_poem(tmp_path / "again", seed=4).manifest.fingerprint == manifest.fingerprint
    assert make_poem(tmp_path / "other", "violets\n").manifest.fingerprint != manifest.fingerprint
    assert open_artifact(tmp_path / "out").manifest == manifest


def test_what_is_no_such_artefact(tmp_path: Path) -> None:
    make_poem(tmp_path / "poem")
    with pytest.raises(WrongKind, match="poem"):
        Novel.open(tmp_path / "poem")
    for place in ("none", "file", "folder", "begun", "begun.partial"):
        (tmp_path / "file").write_text("x")
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "begun.partial").mkdir(exist_ok=True)
        with pytest.raises(NotAnArtifact, match=r"again to go on" if "begun" in place else place):
            Poem.open(tmp_path / place)
    write_json(tmp_path / "folder" / "manifest.json", {"name": "another program's"})
    for reader in (Poem.open, open_artifact):
        with pytest.raises(WrongKind):
            reader(tmp_path / "folder")
    write_json(tmp_path / "folder" / "manifest.json", {"kind": "play", "version": 2})
    with pytest.raises(WrongKind, match="play"):
        open_artifact(tmp_path / "folder")


@pytest.mark.parametrize("manifest", [{"version": 1}, {"version": 3}, {"format_version": 1}])
def test_another_version(tmp_path: Path, manifest: dict[str, int]) -> None:
    make_poem(tmp_path / "out")
    file = tmp_path / "out" / "manifest.json"
    write_json(file, {**read_json(file), **manifest})
    with pytest.raises(WrongVersion, match="make it again"):
        Poem.open(tmp_path / "out")


@pytest.mark.parametrize("name", ["meta.json", "fit.json", "atlas.json"])
def test_a_folder_of_an_older_version(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / name, {})
    with pytest.raises(WrongVersion, match="make it again"):
        Poem.open(tmp_path)


HASH = "0" * 64


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lines", "many"),
        ("more", 1),
        ("files", {"a": {"size": -1, "sha256": HASH}}),
        ("files", {"a": {"size": 1, "sha256": "?"}}),
        *[
            ("files", {name: {"size": 1, "sha256": HASH}})
            for name in ("../a", "/etc/passwd", "a/../../b", "a\\b", "C:/a", "a\0b", "", "a//b", "./a")
        ],
        ("files", None),
    ],
)
def test_a_damaged_manifest(tmp_path: Path, field: str, value: Any) -> None:
    make_poem(tmp_path / "out")
    file = tmp_path / "out" / "manifest.json"
    write_json(file, {**read_json(file), field: value})
    with pytest.raises(Damaged, match=field):
        Poem.open(tmp_path / "out")
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000):
        file.write_bytes(content)
        with pytest.raises(Damaged):
            Poem.open(tmp_path / "out")


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    poem = make_poem(tmp_path / "out")
    (tmp_path / "secret").write_text("red")
    poem.file("title.txt").unlink()
    (tmp_path / "out" / "title.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="link out of"):
        poem.file("title.txt")
    assert states(poem)["title.txt"] == "broken"


# ---- files at their first use ----------------------------------------------------------------------------------------


def test_a_file_with_one_block_changed_is_refused_at_its_first_use(tmp_path: Path, monkeypatch: Any) -> None:
    poem = make_poem(tmp_path / "out", "one block after another\n")
    path = tmp_path / "out" / "verses" / "1.txt"
    text = path.read_text()
    path.write_text(text[4:] + text[:4])  # rotated by a block: the size is the same
    for _ in range(2):
        with pytest.raises(Damaged) as refused:
            poem.file("verses/1.txt")
        assert refused.value.file == "verses/1.txt"
    path.write_text(text)
    assert poem.file("verses/1.txt") == path


def test_a_file_is_hashed_once_by_all_processes_and_again_when_it_changed(tmp_path: Path, monkeypatch: Any) -> None:
    make_poem(tmp_path / "out")
    hashed = []
    monkeypatch.setattr(
        "cocomix.artifacts.artifact.file_sha256", lambda path: (hashed.append(path.name), file_sha256(path))[1]
    )
    for _ in range(2):
        poem = through_pickle(Poem.open(tmp_path / "out"))  # as a loader's worker has it
        for _ in range(2):
            poem.file("title.txt")
    assert hashed == ["title.txt"]
    path = tmp_path / "out" / "title.txt"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_text("bad")
    os.utime(path, ns=times)  # size and time of change as before; the inode's own time of change tells
    with pytest.raises(Damaged):
        poem.file("title.txt")


def test_files_that_are_missing_or_truncated(tmp_path: Path) -> None:
    poem = make_poem(tmp_path / "out")
    poem.file("title.txt").write_text("r")
    with pytest.raises(Damaged, match="1 bytes instead of 3"):
        poem.file("title.txt")
    (tmp_path / "out" / "title.txt").unlink()
    for name in ("title.txt", "unheard of"):
        with pytest.raises(Damaged) as refused:
            poem.file(name)
        assert refused.value.file == name


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poem = make_poem(tmp_path / "out")
    (tmp_path / "no folder").write_text("x")
    monkeypatch.setenv("COCOMIX_CACHE", str(tmp_path / "no folder"))
    poem = Poem.open(poem.path)
    assert poem.file("title.txt").read_text() == "red"
    assert poem.file("title.txt").read_text() == "red"


# ---- verification ----------------------------------------------------------------------------------------------------


def test_verification_hashes_everything(tmp_path: Path) -> None:
    poem = make_poem(tmp_path / "out")
    assert set(states(poem).values()) == {"ok"}
    spoil(poem.file("title.txt"))
    (poem.path / "verses" / "1.txt").unlink()
    found = states(Poem.open(poem.path))
    assert found == {"title.txt": "broken", "verses/1.txt": "broken", "fingerprint": "ok"}


def test_verification_believes_no_number(tmp_path: Path) -> None:
    poem = make_poem(tmp_path / "out")
    file = poem.path / "manifest.json"
    manifest = read_json(file)
    manifest["files"]["title.txt"]["size"] = 10**18
    manifest["made_from"] = {"muse": "1"}
    write_json(file, manifest)
    assert states(Poem.open(poem.path)) == {"title.txt": "broken", "verses/1.txt": "ok", "fingerprint": "broken"}


@pytest.mark.parametrize(
    "error",
    [Damaged("a", "b"), BeingWritten("a", "host", 3), AlreadyExists("a", ("k",)), MadeFromSomethingElse("a", ("k",))],
)
def test_errors_go_between_processes(error: Exception) -> None:
    again = through_pickle(error)
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_manifests_are_json_that_people_can_read(tmp_path: Path) -> None:
    make_poem(tmp_path / "out")
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert list(json.loads(text))[:3] == ["kind", "version", "cocomix_version"]


def test_what_an_interrupted_command_left_can_be_verified(tmp_path: Path) -> None:
    with suppress(KeyError), Poem.create(tmp_path / "out", identity={}, resume=True):
        raise KeyError
    found = verify(tmp_path / "out.partial")
    assert (found.kind, [finding.state for finding in found.found]) == ("unfinished poem", ["not checked"])
    assert found.to_json()["whole"]
