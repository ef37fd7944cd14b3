"""Artefacts at URLs: one writer, files at their first use, faults of the network."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from cocomix.artifacts import (
    MANIFEST,
    AlreadyExists,
    BeingWritten,
    Damaged,
    NotAnArtifact,
    OutsideFolder,
    RemoteFolder,
    Unreachable,
    open_artifact,
    partial_path,
    retried,
    url_of,
)
from cocomix.artifacts.staging import MARKER, Claim, made_at
from cocomix.artifacts.store import redacted
from cocomix.runtime.errors import CoCoMixError
from tests.artifacts.conftest import Poem, make_poem, write_poem

URL = "memory://b/out"


def there(url: str = URL) -> set[str]:
    return set(RemoteFolder(url).files())


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_an_output_is_uploaded_with_its_manifest_last(memory: Any, cache: Path, monkeypatch: Any) -> None:
    order: list[str] = []
    for method in ("put_file", "pipe_file"):
        original = getattr(type(memory), method)

        def noted(self: Any, one: Any, two: Any, original: Any = original, **options: Any) -> None:
            order.append(two if isinstance(two, str) else one)
            original(self, one, two, **options)

        monkeypatch.setattr(type(memory), method, noted)
    poem = make_poem(URL)
    assert [name.removeprefix("/b/out/") for name in order] == [MARKER, "title.txt", "verses/1.txt", MANIFEST]
    assert there() == {"manifest.json", "title.txt", "verses/1.txt"}
    assert poem.url == URL
    assert poem.file("verses/1.txt").is_relative_to(cache / "copies")
    assert not made_at(URL).exists()
    with pytest.raises(AlreadyExists), Poem.create(URL, identity={}):
        raise AssertionError
    memory.pipe_file("/b/other/file", b"x")
    with pytest.raises(AlreadyExists), Poem.create("memory://b/other", identity={}):
        raise AssertionError
    again = Poem.made(URL, {"seed": 0})
    assert again is not None
    assert again.manifest == poem.manifest
    with pytest.raises(AlreadyExists) as refused:
        Poem.made(URL, {"seed": 1})
    assert refused.value.keys == ("seed",)


def test_nothing_stays_of_an_output_that_failed(memory: Any) -> None:
    with pytest.raises(KeyError), Poem.create(URL, identity={}):
        raise KeyError
    assert there() == set()
    assert not list(made_at(URL).parent.iterdir())


class Broken:
    """Lets a store fail so many times, or for good, when a file is written."""

    def __init__(self, monkeypatch: Any, memory: Any, name: str, times: int) -> None:
        self.times, original = times, type(memory).put_file

        def put_file(store: Any, source: str, target: str, **options: Any) -> None:
            if target.endswith(name) and self.times:
                self.times -= 1
                raise OSError("connection lost")
            original(store, source, target, **options)

        monkeypatch.setattr(type(memory), "put_file", put_file)


def test_a_short_fault_of_the_network_is_no_fault(memory: Any, monkeypatch: Any) -> None:
    broken = Broken(monkeypatch, memory, "title.txt", 3)
    assert make_poem(URL).file("title.txt").read_text() == "red"
    assert broken.times == 0


def test_an_upload_that_breaks_off_is_made_up_for(memory: Any, monkeypatch: Any) -> None:
    broken = Broken(monkeypatch, memory, "title.txt", -1)
    with pytest.raises(Unreachable, match="whole"):
        make_poem(URL)
    assert MANIFEST not in there()
    with pytest.raises(NotAnArtifact):
        Poem.open(URL)
    with pytest.raises(AlreadyExists, match="cocomix push"):
        make_poem(URL)
    broken.times = 0
    with pytest.raises(AlreadyExists) as refused:
        Poem.made(URL, {"seed": 1})
    assert refused.value.keys == ("seed",)
    poem = Poem.made(URL, {"seed": 0})
    assert poem is not None
    assert there() == {"manifest.json", "title.txt", "verses/1.txt"}
    assert not made_at(URL).exists()


def test_pushing(memory: Any, tmp_path: Path) -> None:
    poem = make_poem(tmp_path / "out")
    assert poem.push(URL) == URL
    assert open_artifact(URL).manifest == poem.manifest
    with pytest.raises(AlreadyExists):
        poem.push(URL)
    with pytest.raises(CoCoMixError, match="is no URL"):
        poem.push(tmp_path / "b")
    (poem.path / "title.txt").write_text("bad")
    with pytest.raises(Damaged):
        poem.push("memory://b/again")
    assert there("memory://b/again") == set()


# ---- two writers -----------------------------------------------------------------------------------------------------


def refuse_the_later(url: str, monkeypatch: Any) -> None:
    """Two writers of one URL, on two machines: each has a cache of its own."""
    with Poem.create(url, identity={"seed": 0}) as first:
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("COCOMIX_CACHE", str(made_at(url).parent / "elsewhere"))
            with pytest.raises(BeingWritten) as refused, Poem.create(url, identity={"seed": 1}):
                raise AssertionError
            assert refused.value.pid > 0
        write_poem(first)
    with pytest.raises(AlreadyExists), Poem.create(url, identity={"seed": 1}):
        raise AssertionError
    assert Poem.open(url).manifest.identity == {"seed": 0}
    assert there(url) == {"manifest.json", "title.txt", "verses/1.txt"}


def refuse_who_lost_the_marker(url: str) -> None:
    """Where both got a marker (a store that cannot create exclusively), the one who lost it is refused."""
    with Poem.create(url, identity={"seed": 0}, shared=True) as first:
        RemoteFolder(url).write(MARKER, json.dumps({"host": "far", "pid": 7, "token": "another"}).encode())
        with pytest.raises(BeingWritten):
            write_poem(first)
    assert there(url) == {MARKER}


def one_of_many_claims(url: str) -> None:
    """Of claims made at the same moment one succeeds."""
    won, together = [], threading.Barrier(6)

    def claim() -> None:
        together.wait()
        try:
            won.append(Claim(url))
        except (BeingWritten, AlreadyExists):
            return

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_two_writers_to_one_url(memory: Any, monkeypatch: Any) -> None:
    refuse_the_later(URL, monkeypatch)
    refuse_who_lost_the_marker("memory://b/lost")


def test_two_writers_to_one_s3_url(s3: Any, monkeypatch: Any) -> None:
    refuse_the_later("s3://corpora/out", monkeypatch)
    refuse_who_lost_the_marker("s3://corpora/lost")
    one_of_many_claims("s3://corpora/many")


def test_a_manifest_that_appeared_meanwhile_is_not_overwritten(memory: Any) -> None:
    with Poem.create(URL, identity={}, shared=True) as staging:
        memory.pipe_file("/b/out/manifest.json", b"theirs")
        with pytest.raises(AlreadyExists):
            write_poem(staging)
    assert memory.cat_file("/b/out/manifest.json") == b"theirs"


def test_the_marker_of_a_killed_process_is_taken_over(memory: Any) -> None:
    claim = Claim(URL)
    with pytest.raises(BeingWritten):
        Claim(URL)
    dead = {**json.loads(claim._marker), "started": 0.0}  # another process has its number now
    memory.pipe_file(f"/b/out/{MARKER}", json.dumps(dead).encode())
    make_poem(URL)
    assert MARKER not in there()


def test_stores_without_exclusive_creation(memory: Any, monkeypatch: Any) -> None:
    original = type(memory).pipe_file

    def pipe_file(self: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise NotImplementedError
        original(self, path, value)

    monkeypatch.setattr(type(memory), "pipe_file", pipe_file)
    refuse_the_later(URL, monkeypatch)


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_files_are_fetched_at_their_first_use_and_checked(memory: Any, cache: Path, tmp_path: Path) -> None:
    make_poem(tmp_path / "out").push(URL)
    poem = Poem.open(URL)
    assert {path.name for path in poem.path.iterdir()} == {MANIFEST}
    memory.pipe_file("/b/out/title.txt", b"bad")
    with pytest.raises(Damaged, match=f"{URL}/title.txt"):
        poem.file("title.txt")
    memory.pipe_file("/b/out/title.txt", b"red")
    poem.file("title.txt").write_text("re")  # a copy that was damaged here is fetched again
    assert poem.file("title.txt").read_text() == "red"
    assert {path.name for path in poem.path.iterdir()} == {MANIFEST, "title.txt"}
    memory.rm_file("/b/out/verses/1.txt")
    with pytest.raises(CoCoMixError, match="does not exist"):
        poem.file("verses/1.txt")
    memory.pipe_file("/b/out/title.txt", b"bad")  # what is there now counts, not the copy here
    found = poem.verify()
    assert [finding.what for finding in found.broken] == ["title.txt", "verses/1.txt"]
    assert found.path == URL
    assert f"{URL}/title.txt" in found.broken[0].detail


def test_a_copy_never_mixes_two_versions(memory: Any, tmp_path: Path) -> None:
    opened = []
    for text in ("roses\n", "violets\n"):
        poem = make_poem(tmp_path / text.strip(), text)
        memory.store.clear()
        poem.push(URL)
        opened.append(Poem.open(URL))
        opened[-1].file("verses/1.txt")
    assert [poem.file("verses/1.txt").read_text() for poem in opened] == ["roses\n", "violets\n"]


def test_a_network_fault_while_reading_is_mended_or_is_not_called_damage(
    memory: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    make_poem(tmp_path / "out").push(URL)
    faults, original = [3], type(memory).get_file

    def get_file(self: Any, *paths: Any, **options: Any) -> None:
        if faults[0]:
            faults[0] -= 1
            raise ConnectionResetError("connection reset by peer")
        original(self, *paths, **options)

    monkeypatch.setattr(type(memory), "get_file", get_file)
    poem = Poem.open(URL)
    assert poem.file("title.txt").read_text() == "red"
    faults[0] = -1
    with pytest.raises(Unreachable):
        poem.file("verses/1.txt")
    assert not list(poem.path.rglob("*.tmp"))


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, NotImplementedError, ValueError])
def test_what_lasts_is_not_tried_again(error: type[Exception]) -> None:
    attempts = []

    def action() -> None:
        attempts.append(1)
        raise error

    with pytest.raises(error):
        retried(action)
    assert len(attempts) == 1


# ---- hostile names ---------------------------------------------------------------------------------------------------


def test_a_bucket_writes_nowhere_else(memory: Any, cache: Path, tmp_path: Path) -> None:
    make_poem(tmp_path / "out").push(URL)
    manifest = json.loads(memory.cat_file("/b/out/manifest.json"))
    manifest["files"]["verses/../../../../pwned.txt"] = manifest["files"]["title.txt"]
    memory.pipe_file("/b/out/manifest.json", json.dumps(manifest).encode())
    memory.store["/b/out/verses/../../../../pwned.txt"] = memory.store["/b/out/title.txt"]
    with pytest.raises(Damaged, match="pwned"):
        Poem.open(URL)
    with pytest.raises(OutsideFolder):
        RemoteFolder(URL).files()
    with pytest.raises(OutsideFolder):
        RemoteFolder(URL).download("verses/../../../../pwned.txt", tmp_path / "x")
    assert not list(tmp_path.rglob("pwned*"))


# ---- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/data/", "s3://bucket/data"),
        (Path("s3://bucket/data"), "s3://bucket/data"),
        (Path("S3://bucket/data") / "labels", "s3://bucket/data/labels"),
        ("hf://datasets/user/name@main/data", "hf://datasets/user/name@main/data"),
        ("file:///tmp/x", "file:///tmp/x"),
        (Path("file:///tmp/x"), "file:///tmp/x"),
        ("abfs://container@account/data", "abfs://container@account/data"),
        ("data/books", None),
        ("/data/a:b/c", None),
        ("docs:", None),
        ("C:/data", None),
    ],
)
def test_what_is_a_url(given: str | Path, url: str | None) -> None:
    assert url_of(given) == url


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter2@bucket/data",
        Path("s3://AKIA:hunter2@bucket/data"),
        "s3://AKIA:hun/ter2@bucket/data",
        Path("s3://AKIA:hun/ter2@bucket/data"),
        "s3://AKIA:hun/t@er2@bucket/data",
        "https://hunter2@host/data.jsonl",
        "https://host/d.jsonl?X-Amz-Signature=hunter2&a=b",
    ],
)
def test_urls_with_secrets_are_refused_without_showing_them(url: str | Path) -> None:
    with pytest.raises(CoCoMixError, match="access key") as refused:
        url_of(url)
    assert not any(part in str(refused.value) for part in ("hunter2", "hun", "er2"))
    assert not any(part in redacted(f"cannot read {url} twice") for part in ("hunter2", "hun", "er2"))


@pytest.mark.parametrize("url", ["s3://", "s3://bucket/../other"])
def test_urls_that_are_no_folders(url: str) -> None:
    with pytest.raises(CoCoMixError, match=url):
        url_of(url)


def test_what_is_made_for_a_url_is_made_in_the_cache(cache: Path) -> None:
    assert made_at(URL) == cache / "outgoing" / "memory" / "b" / "out"
    assert partial_path(URL) == made_at(URL).with_name("out.partial")
