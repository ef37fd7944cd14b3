"""An artefact of the tests' own, a cache and stores."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import fsspec
import pytest

from cocomix.artifacts import Artifact, Manifest, Staging


class PoemManifest(Manifest):
    lines: int = 0


class Poem(Artifact[PoemManifest]):
    kind = "poem"
    manifest_type = PoemManifest
    made_by = "cocomix compose"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COCOMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cocomix.artifacts.store._FIRST_WAIT", 0.001)
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An S3 server of this machine with a bucket `corpora`."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "hunter2-hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    forget_connections()
    system = fsspec.filesystem("s3")
    system.mkdir("corpora")
    yield system
    urlopen(Request(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")).close()
    server.stop()
    forget_connections()


def forget_connections() -> None:
    """fsspec keeps file systems with the settings of their first use."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def write_poem(staging: Staging[PoemManifest], text: str = "roses\n") -> None:
    (staging.path / "verses").mkdir()
    (staging.path / "verses" / "1.txt").write_text(text)
    (staging.path / "title.txt").write_text("red")
    staging.finish(PoemManifest(lines=1, made_from={"muse": "0"}))


def make_poem(output: Path | str, text: str = "roses\n", seed: int = 0) -> Poem:
    with Poem.create(output, identity={"seed": seed}) as staging:
        write_poem(staging, text)
    return Poem.open(output)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
