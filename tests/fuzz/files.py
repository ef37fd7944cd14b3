"""Spoilt files: corpora, recipes, manifests, shards and weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from cocomix.concepts import ConceptDictionary
from cocomix.data import PrepareSettings, Tokens, prepare
from cocomix.data.reading import read_texts
from cocomix.evaluation import Run
from cocomix.labelling import Labels
from cocomix.training.recipe import RunConfig, load_recipe
from tests.fuzz.cases import Target, World
from tests.fuzz.mutations import VALUES, WORDS, Draw, spoilt_bytes, spoilt_json, spoilt_safetensors, spoilt_value

Spoil = Callable[[Draw, bytes], bytes]


def _jsonl(draw: Draw) -> bytes:
    rows = draw(st.lists(st.one_of(st.fixed_dictionaries({"text": WORDS}), VALUES), max_size=6))
    data = "\n".join(json.dumps(row) for row in rows).encode()
    return spoilt_bytes(draw, data) if draw(st.booleans()) else data


def corpus(world: World, draw: Draw) -> None:
    """A corpus file of any kind gives documents, in order and in pieces, or a refusal."""
    suffix = draw(st.sampled_from([".jsonl", ".json", ".txt", ".jsonl.gz", ".jsonl.zst", ".parquet"]))
    path = world.scratch / f"corpus{suffix}"
    path.write_bytes(_jsonl(draw))
    found = world.refusal_or_result(lambda: list(read_texts(str(path), "text")))
    path.unlink()
    for piece in found or ():
        assert piece.text or piece.last
        piece.text.encode()


def preparation(world: World, draw: Draw) -> None:
    """`prepare` writes a whole folder or none."""
    path, output = world.scratch / "corpus.jsonl", world.scratch / "data"
    path.write_bytes(_jsonl(draw))
    sizes = {"block_size": draw(st.integers(2, 6)), "tokens_per_file": draw(st.integers(1, 18))}
    tokenizer = str(world.workshop.data / "tokenizer")
    wanted = PrepareSettings(sources=(str(path),), validation_fraction=0.5, tokenizer=tokenizer, **sizes)
    made = world.refusal_or_result(lambda: prepare(wanted, output))
    assert {each.name for each in world.scratch.iterdir()} == {"corpus.jsonl"} | ({"data"} if made else set())
    if made:
        for split in made.manifest.splits:
            assert [len(row["input_ids"]) for row in Tokens.open(output).split(split)] == [
                sizes["block_size"]
            ] * made.manifest.splits[split].blocks
        shutil.rmtree(output)


def recipe(world: World, draw: Draw) -> None:
    """A recipe is a run's configuration or a refusal; a configuration reads back as it was written."""
    values = world.workshop.values("cocomix")
    if draw(st.booleans()):
        values["data"] = {"mixture": [{"path": "a", "weight": 1, "labels": "b"}]}
        del values["labels"]
    text = yaml.safe_dump(spoilt_value(draw, values), allow_unicode=True).encode()
    path = world.scratch / "recipe.yaml"
    path.write_bytes(spoilt_bytes(draw, text) if draw(st.booleans()) else text)
    found = world.refusal_or_result(lambda: load_recipe(path))
    if found is not None:
        assert RunConfig.model_validate(found.model_dump()) == found
        assert found.data_folders


def _spoils(source: Callable[[World], Path], names: str, spoil: Spoil, read: Callable[[Path], Any]) -> dict[str, Any]:
    """A case that spoils one of the files of a folder's copy, reads it, and puts the file back."""

    def setting_up(world: World) -> None:
        shutil.copytree(source(world), world.scratch / "folder")

    def case(world: World, draw: Draw) -> None:
        folder = world.scratch / "folder"
        path = draw(st.sampled_from(sorted(folder.glob(names))))
        whole = path.read_bytes()
        path.write_bytes(spoil(draw, whole))
        try:
            world.refusal_or_result(lambda: read(folder))
        finally:
            path.write_bytes(whole)

    return {"case": case, "setting_up": setting_up}


def _read_data(folder: Path) -> None:
    data = Tokens.open(folder)
    for split in data.manifest.splits:
        for row in data.split(split):
            assert len(row["input_ids"]) == data.manifest.block_size


def _read_labels(folder: Path) -> None:
    store = Labels.open(folder)
    for split in store.manifest.splits:
        labels = store.split(split)
        for index in (0, len(labels) - 1):
            if 0 <= index < len(labels):
                shape = (store.manifest.block_size, store.manifest.k)
                assert labels[index]["concept_labels"].shape == shape


FILES = (
    Target("corpus files", corpus, 6),
    Target("preparation", preparation, 3),
    Target("recipes", recipe, 6),
    Target(
        "data manifests",
        share=3,
        **_spoils(lambda world: world.workshop.data, "manifest.json", spoilt_json, _read_data),
    ),
    Target("token files", share=3, **_spoils(lambda world: world.workshop.data, "*-*.npy", spoilt_bytes, _read_data)),
    Target(
        "label manifests",
        share=3,
        **_spoils(lambda world: world.workshop.labels, "manifest.json", spoilt_json, _read_labels),
    ),
    Target(
        "label shards", share=3, **_spoils(lambda world: world.workshop.labels, "*.npy", spoilt_bytes, _read_labels)
    ),
    Target(
        "run manifests",
        share=3,
        **_spoils(lambda world: world.workshop.cocomix_run, "manifest.json", spoilt_json, Run.open),
    ),
    Target(
        "metrics", share=2, **_spoils(lambda world: world.workshop.cocomix_run, "metrics.jsonl", spoilt_bytes, Run.open)
    ),
    Target(
        "weights of runs",
        share=1,
        **_spoils(
            lambda world: world.workshop.cocomix_run,
            "model.safetensors",
            spoilt_safetensors,
            lambda folder: Run.open(folder).model(),
        ),
    ),
    Target(
        "configurations of runs",
        share=1,
        **_spoils(
            lambda world: world.workshop.cocomix_run,
            "config.json",
            spoilt_json,
            lambda folder: Run.open(folder).model(),
        ),
    ),
    Target(
        "dictionaries",
        share=1,
        **_spoils(
            lambda world: world.workshop.dictionary,
            "*.safetensors",
            spoilt_safetensors,
            ConceptDictionary.from_sae_lens,
        ),
    ),
)
