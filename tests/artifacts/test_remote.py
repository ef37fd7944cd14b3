"""Data and labels at URLs: in memory, in a folder by file://, and on an S3 server of this machine."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cocomix.artifacts import Damaged, NotAnArtifact, RemoteFolder, explained
from cocomix.artifacts.store import redacted
from cocomix.data import Tokens
from cocomix.data.documents import resolve_sources
from cocomix.data.reading import read_texts
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.recipe import RunConfig, load_recipe, save_recipe
from tests.artifacts.conftest import forget_connections
from tests.command_line import Cli
from tests.workshop import BLOCK, VOCAB, Workshop, prepare_toy, write_corpus

SIZES = ("--vocab-size", VOCAB, "--block-size", BLOCK, "--validation-fraction", 0.2, "--tokens-per-file", 40 * BLOCK)


def copies(cache: Path) -> list[str]:
    """Shards that were fetched."""
    found = [path for pattern in ("*.arrow", "*.npy") for path in (cache / "copies").rglob(pattern)]
    return sorted(f"{path.parent.name}/{path.name}" if path.suffix == ".arrow" else path.name for path in found)


# ---- URLs ----------------------------------------------------------------------------------------------------------


def test_what_libraries_say_is_one_sentence_without_secrets() -> None:
    for error, says in (
        (FileNotFoundError("no bucket"), "does not exist (no bucket)."),
        (PermissionError("Forbidden"), "access is refused (Forbidden); check your access keys."),
        (OSError("at http://a:hunter2@h\nfailed."), "cannot be reached (OSError: at http://***@h failed); check"),
    ):
        with pytest.raises(CoCoMixError) as told, explained("s3://b/x"):
            raise error
        assert str(told.value).startswith("s3://b/x")
        assert says in str(told.value)
        assert "\n" not in str(told.value)
    assert redacted("https://h/x?sig=1&page=2") == "https://h/x?sig=***&page=2"


def test_secrets_do_not_get_into_a_recipe(workshop: Workshop, tmp_path: Path) -> None:
    recipe = RunConfig.model_validate(workshop.values("ntp", data="s3://bucket/data"))
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert "data: s3://bucket/data\n" in (tmp_path / "recipe.yaml").read_text()
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    with pytest.raises(CoCoMixError, match=r"recipe.yaml: data.*s3://\*\*\*@bucket/data") as told:
        load_recipe(tmp_path / "recipe.yaml", ["data=s3://AKIA:hunter2@bucket/data"])
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("zzz://bucket/data", "zzz:// is no file system that is known here"),
        ("gs://bucket/data", r"needs a package that is missing \(Please install gcsfs"),
        ("memory://nothing/data", "memory://nothing/data does not exist"),
    ],
)
def test_data_that_cannot_be_opened(url: str, says: str, memory: Any, cli: Cli) -> None:
    if url.startswith("gs") and find_spec("gcsfs") is not None:
        pytest.skip("gcsfs is installed")
    with pytest.raises(CoCoMixError, match=says):
        Tokens.open(url)
    cli.refuses("verify", url, says="does not exist" if url.startswith("memory") else "://")


# ---- reading -------------------------------------------------------------------------------------------------------


def test_a_copy_takes_shards_when_they_are_read_and_checks_them(workshop: Workshop, cache: Path, memory: Any) -> None:
    here = Tokens.open(workshop.data)
    here.push("memory://b/data")
    Labels.open(workshop.labels).push("memory://b/data/labels")
    data = Tokens.open("memory://b/data")
    assert data.manifest == here.manifest
    assert data.tokenizer().get_vocab() == here.tokenizer().get_vocab()
    assert copies(cache) == []
    shard = data.shards("train", 40)[1]
    assert (shard.read() == here.shards("train", 40)[1].read()).all()
    assert copies(cache) == ["train-00001.npy"]
    labels, stored = Labels.open(Path("memory://b/data/labels")), Labels.open(workshop.labels)
    assert labels.manifest == stored.manifest
    assert (labels.split("train")[0]["concept_labels"] == stored.split("train")[0]["concept_labels"]).all()
    assert copies(cache) == ["train-00000.counts.npy", "train-00000.ids.npy", "train-00001.npy"]

    for damaged in ("/b/data/train-00000.npy", "/b/data/labels/validation-00000.ids.npy"):
        content = memory.cat_file(damaged)
        memory.pipe_file(damaged, content[:-200] + bytes(200))
    with pytest.raises(Damaged, match=r"memory://b/data/train-00000\.npy"):
        data.shards("train", 40)[0].read()
    with pytest.raises(Damaged, match=r"memory://b/data/labels/validation-00000\.ids\.npy"):
        labels.split("validation")[0]
    assert copies(cache) == ["train-00000.counts.npy", "train-00000.ids.npy", "train-00001.npy"]
    assert not list(cache.rglob("*.tmp"))

    memory.rm_file("/b/data/train-00000.npy")
    with pytest.raises(CoCoMixError, match=r"memory://b/data/train-00000\.npy"):
        data.shards("train", 40)[0].read()
    memory.rm_file("/b/data/manifest.json")
    with pytest.raises(NotAnArtifact, match=r"memory://b/data .*interrupted"):
        Tokens.open("memory://b/data")


def test_a_copy_never_mixes_two_versions(tmp_path: Path, cache: Path, memory: Any) -> None:
    opened = []
    for seed in (0, 1):
        corpus = write_corpus(tmp_path / f"corpus{seed}", documents=30, seed=seed)
        prepared = prepare_toy(corpus, tmp_path / f"data{seed}")
        memory.store.clear()
        prepared.push("memory://b/data")
        opened.append(Tokens.open("memory://b/data"))
        assert (opened[-1].shards("train", 40)[0].read() == prepared.shards("train", 40)[0].read()).all()
    assert opened[0].path != opened[1].path
    assert (opened[0].shards("train", 40)[0].read() != opened[1].shards("train", 40)[0].read()).any()


def test_sources_are_streamed(tmp_path: Path, memory: Any, cli: Cli) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [f"document {number}" for number in range(5)]
    memory.pipe_file("/b/text/1.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in rows[:3]).encode())
    with memory.open("/b/text/2.parquet", "wb") as stream:
        pq.write_table(pa.table({"text": rows[3:]}), stream)
    memory.pipe_file("/b/text/notes.pdf", b"?")
    memory.pipe_file("/b/text/.hidden/x.txt", b"no")
    memory.pipe_file("/b/pictures/x.png", b"?")
    (folder,) = resolve_sources(["memory://b/text"])
    assert [file.where for file in folder.files] == ["memory://b/text/1.jsonl", "memory://b/text/2.parquet"]
    assert folder.ignored == 1
    assert [piece.text for file in folder.files for piece in read_texts(file.where, "text")] == rows
    memory.pipe_file("/b/broken.jsonl", b'{"text": 1}\n')
    for url, says in (
        ("memory://b/broken.jsonl", r"memory://b/broken.jsonl:1: 'text' holds a number"),
        ("memory://b/none", "memory://b/none does not exist"),
        ("memory://b/text/notes.pdf", "not a supported kind of file"),
        ("memory://b/pictures", "memory://b/pictures holds no file of a supported kind"),
    ):
        cli.refuses("prepare", url, *SIZES, "--output", tmp_path / "data", says=says)
    with pytest.raises(CoCoMixError, match="is given twice"):
        resolve_sources(["memory://b/text", "memory://b/text/1.jsonl"])


# ---- writing -------------------------------------------------------------------------------------------------------


def test_verbs_that_need_a_folder_here(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli.refuses("eval", "s3://b/run", says="s3://b/run: a run that is read must be on this machine")
    cli.refuses("demo", "s3://b/demo", says="s3://b/demo: the demo's folder must be on this machine")
    cli.refuses("sweep", tmp_path, "-o", "s3://b/sweep", says="s3://b/sweep: a sweep must be on this machine")
    assert not list(tmp_path.iterdir())


def test_file_urls_are_folders(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    url = f"file://{tmp_path}/there/data"
    cli("prepare", workshop.corpus, *SIZES, "--output", url, "-q")
    assert (tmp_path / "there" / "data" / "manifest.json").is_file()
    assert json.loads(cli("verify", url, "--json", "-q").out)["path"] == url
    shard = tmp_path / "there" / "data" / "train-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-300] + bytes(300))
    error = cli("verify", url, "--json", "-q", status=1).err
    assert f"{url}/train-00000.npy" in error


# ---- everything on S3 ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_text_to_a_trained_model_with_everything_on_s3(
    s3: Any, workshop: Workshop, tmp_path: Path, cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put(str(workshop.corpus), "corpora/text", recursive=True)
    data = "s3://corpora/books"
    meta = json.loads(cli("prepare", "s3://corpora/text", *SIZES, "--output", data, "--json").out)
    here = Tokens.open(workshop.data)
    assert meta["fingerprint"] == here.manifest.fingerprint
    assert meta["sources"][0]["name"] == "s3://corpora/text"

    made_with = ("--teacher", workshop.teacher, "--dictionary", workshop.dictionary, "-q")
    cli("label", data, *made_with)
    assert Labels.open(f"{data}/labels").manifest.fingerprint == fingerprint(workshop.labels)
    assert "nothing to do" in cli("label", data, *made_with[:-1]).err
    cli.refuses("label", data, *made_with, "--set", "k=2", says="s3://corpora/books/labels already exists")
    cli.refuses("label", data, *made_with, "--shard", "0/2", "-o", "s3://corpora/x", says="cocomix push")

    cache.rename(tmp_path / "first")  # another machine
    places = {"data": data, "labels": f"{data}/labels", "tokens": 2 * 8 * BLOCK}
    recipe = workshop.recipe_file(tmp_path / "r.yaml", "cocomix", **places)
    run = json.loads(cli("train", recipe, "--output", "s3://corpora/run", "--json").out)
    assert (run["data"]["path"], run["labels"]["path"]) == (data, f"{data}/labels")
    assert "model.safetensors" in RemoteFolder("s3://corpora/run").files()
    assert b"data: s3://corpora/books\n" in s3.cat_file("corpora/run/recipe.yaml")
    for url in (data, f"{data}/labels"):
        found = json.loads(cli("verify", url, "--json").out)
        assert found["whole"]
        assert found["path"] == url
    said = b"".join(s3.cat(s3.find("corpora")).values())
    assert b"hunter2" not in said
    assert b"of-the-tests" not in said

    cli.refuses("prepare", "s3://corpora/text", *SIZES, "--output", "s3://nobody/x", says="bucket does not exist")
    cli.refuses("prepare", "s3://nobody/text", *SIZES, "--output", "s3://corpora/y", says="s3://nobody/text does not")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    forget_connections()
    cli.refuses("verify", data, says="check the address, the network and your access keys")


def fingerprint(labels: Path) -> str:
    return Labels.open(labels).manifest.fingerprint
