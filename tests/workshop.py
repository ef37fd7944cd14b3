"""Everything a run needs, at toy size: text, prepared data, a teacher, its dictionary, labels, two finished runs."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from cocomix.artifacts import MANIFEST, file_entry, read_json, write_json
from cocomix.concepts import AttributionConfig, DictionaryConfig, FitSettings, TeacherConfig
from cocomix.data import PrepareSettings, Tokens, prepare
from cocomix.interop import export_run
from cocomix.labelling import distill_data, fit_on_data, label_data
from cocomix.training import train
from cocomix.training.recipe import RunConfig, load_recipe

WORDS = ("list", "of", "the", "items", "and", "a", "string", "returns", "value", "café", "key", "index", "file")
BLOCK, CONCEPTS, VOCAB = 16, 48, 290
TOY_BACKBONE = {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 2, "initializer_range": 0.1}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def write_corpus(folder: Path, documents: int = 60, seed: int = 0) -> Path:
    """Text files in which every word but the first mostly follows from the one before."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for number in range(documents):
        words, word = [], number
        for draw in torch.randint(100, (40,), generator=generator).tolist():
            word = word * 5 + 1 if draw < 70 else draw
            words.append(WORDS[word % len(WORDS)])
        (folder / f"{number:03d}.txt").write_text(" ".join(words) + "\n", encoding="utf-8")
    return folder


def prepare_toy(corpus: Path, output: Path, **changes: Any) -> Tokens:
    settings = {"vocab_size": VOCAB, "block_size": BLOCK, "tokens_per_file": 40 * BLOCK, "validation_fraction": 0.2}
    return prepare(PrepareSettings(sources=(str(corpus),), **{**settings, **changes}), output)


def resealed(folder: Path) -> Path:
    """An artefact that a test changed, with a manifest of the files it has now."""
    manifest = read_json(folder / MANIFEST)
    found = {name: folder / name for name in manifest["files"] if (folder / name).is_file()}
    manifest["files"] = {name: file_entry(path).model_dump() for name, path in found.items()}
    write_json(folder / MANIFEST, manifest)
    return folder


def of_an_earlier_algorithm(targets: Path) -> None:
    """Have what a teacher predicts look as if an earlier cocomix had made it."""
    manifest = read_json(targets / MANIFEST)
    manifest["identity"]["made_with"]["algorithm"] = "0"
    write_json(targets / MANIFEST, manifest)


class Workshop:
    """Made lazily, each part once per test session, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: dict[Path, set[Path]] = {}  # what training left in the folder of each run, from there

    @cached_property
    def corpus(self) -> Path:
        return write_corpus(self.folder / "corpus")

    @cached_property
    def data(self) -> Path:
        return prepare_toy(self.corpus, self.folder / "data").path

    @cached_property
    def teacher(self) -> Path:
        return train(self.recipe("ntp", name="teacher", tokens=20_000), self.folder / "teacher")

    @cached_property
    def dictionary(self) -> Path:
        output = self.folder / "dictionary"
        settings = FitSettings(num_concepts=CONCEPTS, k=8, tokens=40_000, batch_size=256, learning_rate=5e-3)
        fit_on_data(self.data, TeacherConfig(model=str(self.teacher), layer=1), output, settings)
        return output

    @cached_property
    def labels(self) -> Path:
        output = self.folder / "labels"
        source = TeacherConfig(model=str(self.teacher), layer=1)
        label_data(
            self.data, AttributionConfig(teacher=source, dictionary=DictionaryConfig(path=str(self.dictionary))), output
        )
        return output

    @cached_property
    def probabilities(self) -> Path:
        output = self.folder / "probabilities"
        distill_data(self.data, TeacherConfig(model=str(self.teacher), layer=1), output, top_k=8)
        return output

    @cached_property
    def exported(self) -> Path:
        return export_run(self.cocomix_run, self.folder / "exports" / "mixed", license="mit", languages=("en",))

    @cached_property
    def ntp_run(self) -> Path:
        return self._trained("ntp", "plain")

    @cached_property
    def cocomix_run(self) -> Path:
        return self._trained("cocomix", "mixed")

    def _trained(self, objective: str, name: str) -> Path:
        run = train(self.recipe(objective, name=name), self.folder / "runs" / objective)
        self.written[run] = {path.relative_to(run) for path in run.rglob("*")}
        return run

    def values(self, objective: str, **changes: Any) -> dict[str, Any]:
        """A recipe's fields; `changes` are merged into it key by key."""
        values: dict[str, Any] = {
            "objective": objective,
            "data": str(self.data),
            "model": {"backbone": {**TOY_BACKBONE, **NO_DROPOUT}, "insert_layer": 1, "concept_topk": 6},
            "tokens": 12 * 8 * BLOCK,
            "evaluation_blocks": 11,
            "training": {
                "learning_rate": 1e-2,
                "per_device_train_batch_size": 8,
                "per_device_eval_batch_size": 4,
                "logging_steps": 3,
                "eval_steps": 6,
                "save_steps": 4,
            },
        }
        if objective == "cocomix":
            values["labels"] = str(self.labels)
        return merged(values, changes)

    def recipe(self, objective: str, **changes: Any) -> RunConfig:
        return RunConfig.model_validate(self.values(objective, **changes))

    def recipe_file(self, path: Path, objective: str, **changes: Any) -> Path:
        path.write_text(yaml.safe_dump(self.values(objective, **changes)), encoding="utf-8")
        load_recipe(path)
        return path


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result
