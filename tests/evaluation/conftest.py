"""Tiny models, blocks and synthetic run folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import GPT2Config, PreTrainedModel

from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model.accounting import build_model
from cocomix.training import Run

VOCAB, CONCEPTS, TOPK, BLOCK = 31, 24, 6, 10


def backbone(**changes: Any) -> GPT2Config:
    values: dict[str, Any] = {"vocab_size": VOCAB, "n_positions": 16, "n_embd": 16, "n_layer": 3, "n_head": 2}
    values |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    values |= {"initializer_range": 0.4}
    return GPT2Config(**{**values, **changes})


def cocomix_model(mixing: str = "interleave", **changes: Any) -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"insert_layer": 1, "num_concepts": CONCEPTS, "concept_topk": TOPK, "mixing": mixing}
    return CoCoMixForCausalLM(CoCoMixConfig(backbone=backbone(), **{**settings, **changes})).eval()


def ntp_model() -> PreTrainedModel:
    torch.manual_seed(0)
    return build_model(backbone()).eval()


class Rows:
    """A map-style data set of one tensor per block."""

    def __init__(self, name: str, rows: torch.Tensor) -> None:
        self.name, self.rows = name, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {self.name: self.rows[index]}


def token_blocks(count: int = 5, block_size: int = BLOCK) -> Rows:
    generator = torch.Generator().manual_seed(1)
    return Rows("input_ids", torch.randint(VOCAB, (count, block_size), generator=generator))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


WriteRun = Callable[..., Path]


def manifest(name: str, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "kind": "run",
        "version": Run.version,
        "cocomix_version": "0.1.0",
        "fingerprint": "f" * 64,
        "identity": {},
        "made_from": {},
        "files": {},
        "name": name,
        "objective": "ntp",
        "mixing": None,
        "data": {"path": "data", "fingerprint": "d" * 64, "tokenizer_fingerprint": "t" * 64, "block_size": 128},
        "labels": None,
        "parameters": {"total": 1000, "active": 1000},
        "flops_per_token": {"forward": 10.0, "training": 30.0},
        "tokens": 1000,
        "steps": 10,
        "seconds": 50.0,
        "training_dtype": "float32",
        "evaluation_dtype": "float32",
        "evaluation_blocks": 64,
        "seed": 0,
        "device": "cpu",
        "final": {"eval_loss": 4.0},
        "versions": {"torch": "2", "transformers": "5"},
    }
    return {**values, **changes}


def curve_rows(
    losses: list[float], *, step: int = 250, flops: float = 30.0, rate: float = 20.0
) -> list[dict[str, Any]]:
    """Evaluation rows every `step` tokens, the first after `step` tokens."""
    rows = []
    for index, loss in enumerate(losses, start=1):
        tokens = index * step
        rows.append(
            {"step": index, "tokens": tokens, "seconds": tokens / rate, "flops": tokens * flops, "eval_loss": loss}
        )
    return rows


def recipe_of(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe that fits a manifest, with dotted changes."""
    recipe: dict[str, Any] = {
        "name": values["name"],
        "objective": values["objective"],
        "data": values["data"]["path"],
        "model": {"backbone": backbone().to_diff_dict(), "insert_layer": 1, "num_concepts": CONCEPTS},
        "training": {"seed": values["seed"]},
        "tokens": values["tokens"],
        "evaluation_blocks": values["evaluation_blocks"],
    }
    if values["objective"] == "cocomix":
        recipe["labels"] = {"path": "labels"}
        recipe["model"]["mixing"] = values["mixing"]
    for name, value in changes.items():
        inner = recipe
        *sections, last = name.split(".")
        for section in sections:
            if not isinstance(inner.get(section), dict):
                inner[section] = {}
            inner = inner[section]
        inner[last] = value
    return recipe


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write a synthetic run folder: `write_run(name, losses, recipe=dotted changes, **manifest changes)`."""

    def write(
        name: str,
        losses: list[float],
        *,
        folder: str | None = None,
        recipe: dict[str, Any] | None = None,
        annealed: bool = True,
        **changes: Any,
    ) -> Path:
        path = tmp_path / (folder or name.replace("/", "_"))
        path.mkdir()
        changes.setdefault("final", {"eval_loss": losses[-1]})
        values = manifest(name, **changes)
        rate = values["tokens"] / values["seconds"]
        step = values["tokens"] // len(losses)
        rows = curve_rows(losses, step=step, flops=values["flops_per_token"]["training"], rate=rate)
        training = {"step": 1, "tokens": 10, "seconds": 1.0, "flops": 300.0, "loss": 9.0, "learning_rate": 1e-3}
        last = {**training, "step": 10, "learning_rate": 1e-4 if annealed else 5e-4}
        (path / "manifest.json").write_text(json.dumps(values))
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [training, *rows, last]))
        (path / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(values, recipe or {})))
        return path

    return write
