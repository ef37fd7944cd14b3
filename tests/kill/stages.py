"""The stages that are killed: their commands, and what of their results must not depend on having been killed."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cocomix.artifacts import file_sha256, partial_path
from cocomix.training.checkpoints import WRITING
from tests.workshop import TOY_BACKBONE, write_corpus

__all__ = ["Stage", "World", "contents", "litter"]

_SPEED = {"peak_memory", "seconds", "tokens_per_second"}
_CORPUS_FILES = 120


@dataclass(frozen=True)
class Stage:
    """One kind of command.

    Attributes:
        name: for the summary.
        arguments: of `cocomix`, but for the output.
        flag: option that takes the output; none where the verb writes into a folder that is there.
        start_from: a folder to copy to the output before the first start.
        in_checkpoint: kill it while a checkpoint is being written, not just anywhere.
        needed: by other stages.
    """

    name: str
    arguments: tuple[str, ...]
    flag: str | None = "--output"
    start_from: Path | None = None
    in_checkpoint: bool = False
    needed: bool = False

    def command(self, output: Path) -> list[str]:
        """Arguments of `cocomix` that make `output`."""
        verb, *rest = self.arguments
        return [verb, *rest, *([self.flag, str(output)] if self.flag else [str(output)]), "--quiet"]

    def set_up(self, output: Path) -> None:
        """Put what the command changes in place."""
        output.parent.mkdir(parents=True)
        if self.start_from is not None:
            shutil.copytree(self.start_from, output)

    def writes_checkpoint(self, output: Path) -> bool:
        """Whether a checkpoint of the output is being written."""
        return (partial_path(output) / "checkpoints" / WRITING).exists()


class World:
    """The text, the recipes and, made by the stages themselves, everything between.

    Args:
        folder: for all of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ["COCOMIX_CACHE"] = str(folder / "cache")  # of the commands
        self.corpus = write_corpus(folder / "corpus", documents=_CORPUS_FILES)

    def made(self, stage: str) -> Path:
        """What a stage made without being killed."""
        return self.folder / "whole" / stage / "out"

    def stages(self) -> Iterator[Stage]:
        """In the order in which they need one another."""
        data, teacher, sae, labels = (str(self.made(name)) for name in ("prepare", "train teacher", "sae", "label"))
        sizes = (
            "--vocab-size",
            "320",
            "--block-size",
            "16",
            "--tokens-per-file",
            "960",
            "--validation-fraction",
            "0.2",
        )
        yield Stage("prepare", ("prepare", str(self.corpus), *sizes), needed=True)
        recipe = str(self._recipe("teacher", objective="ntp", data=data))
        yield Stage("train teacher", ("train", recipe), needed=True)
        fit = ("--layer", "1", "--num-concepts", "48", "--k", "8", "--tokens", "40000", "--batch-size", "256")
        yield Stage("sae", ("sae", data, "--teacher", teacher, *fit, "--learning-rate", "5e-3"), needed=True)
        pieces = ("--batch-tokens", "160", "--unit-tokens", "320")  # several shards to a token file
        yield Stage("label", ("label", data, "--teacher", teacher, "--dictionary", sae, *pieces), needed=True)
        yield Stage("distill", ("distill", data, "--teacher", teacher, "--top-k", "8", *pieces))
        student = {"objective": "cocomix", "data": data, "labels": labels}
        recipe = str(self._recipe("student", **student))
        yield Stage("train", ("train", recipe), needed=True)
        often = str(self._recipe("often", training={"save_steps": 1}, **student))
        yield Stage("checkpoint", ("train", often), in_checkpoint=True)
        far = {"path": f"file://{data}", "cache_gb": 5e-5, "window_files": 2}
        recipe = str(self._recipe("far", objective="cocomix", data=far, labels=f"file://{labels}"))
        yield Stage("train from a URL", ("train", recipe))
        run = self.made("train")
        yield Stage("eval", ("eval",), flag=None, start_from=run)
        yield Stage("atlas", ("atlas", str(run), "--tokens", "4000", "--effects", "8"))

    def _recipe(self, name: str, training: dict[str, Any] | None = None, **values: Any) -> Path:
        """Write a recipe with dropout, several passes and accumulation: all that a resumed run could get wrong."""
        path = self.folder / f"{name}.yaml"
        steps = {"max_steps": 16, "save_steps": 3, "logging_steps": 2, "eval_steps": 6, "learning_rate": 1e-2}
        batches = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 8}
        dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
        recipe = {
            "name": name,
            "model": {"backbone": {**TOY_BACKBONE, **dropout}, "insert_layer": 1, "concept_topk": 6},
            "evaluation_blocks": 20,
            "training": {**steps, **batches, **(training or {})},
            **values,
        }
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path


def contents(folder: Path) -> dict[str, str]:
    """Everything in a finished folder by file: hashes of its bytes, in text without times and speeds."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts
    }


def _content(path: Path) -> str:
    if path.suffix == ".json":
        return _hash(json.dumps(_timeless(json.loads(path.read_text(encoding="utf-8"))), sort_keys=True))
    if path.suffix == ".jsonl":
        return _hash(
            json.dumps([_timeless(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()])
        )
    return file_sha256(path)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in _SPEED}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def litter(output: Path) -> list[str]:
    """What is left beside or in a finished output that should not be there."""
    beside = {path.name for path in output.parent.iterdir()} - {output.name}
    within = {str(path.relative_to(output)) for path in output.rglob("*") if path.suffix in (".tmp", ".partial")}
    return sorted(beside | within)
