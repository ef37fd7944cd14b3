"""A kind of labels that is not ours: everything that it takes stands in this file."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

from cocomix.concepts import ConceptLabels, LabellerConfig, Vocabulary, labeller, register_labeller
from cocomix.labelling import Labels
from cocomix.runtime.ignore import IGNORE
from cocomix.training import train
from cocomix.training.recipe import load_recipe
from tests.command_line import Cli
from tests.workshop import BLOCK, Workshop


class DummyConfig(LabellerConfig):
    kind: Literal["dummy"] = "dummy"
    concepts: int = 7


class DummyLabeller:
    """The concept of a token is its number, modulo the number of concepts; there is one, whatever k."""

    config_type: ClassVar[Any] = DummyConfig

    def __init__(self, concepts: int) -> None:
        self.num_concepts = concepts

    @classmethod
    def build(cls, config: DummyConfig, *, device: Any, vocabulary: Vocabulary | None) -> "DummyLabeller":
        return cls(config.concepts)

    def label(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, *, k: int) -> ConceptLabels:
        ids = torch.full((*input_ids.shape, k), IGNORE)
        ids[..., 0] = input_ids % self.num_concepts
        return ConceptLabels(ids)

    def fingerprint(self) -> dict[str, str]:
        return {"kind": "dummy", "algorithm": "1", "concepts": str(self.num_concepts)}

    def flops_per_token(self, seq: int) -> float:
        return 0.0

    def describe(self, concept: int) -> str | None:
        return f"{concept} modulo {self.num_concepts}"


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labeller.LABELLERS, "registered", {})
    register_labeller("dummy")(DummyLabeller)


def losses(workshop: Workshop, folder: Path, labels: Any) -> list[float]:
    """Concept loss of two steps with these labels in the recipe's file."""
    folder.mkdir()
    changes = {"tokens": 2 * 8 * BLOCK, "training": {"logging_steps": 1}}
    recipe = workshop.recipe_file(folder / "recipe.yaml", "cocomix", labels=labels, **changes)
    run = train(load_recipe(recipe), folder / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["concept_loss"] for line in lines if "concept_loss" in line]


@pytest.mark.usefixtures("_registered")
def test_a_labeller_of_ones_own_labels_and_trains(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    cli("label", workshop.data, "--kind", "dummy", "--set", "k=2", "--scores", "none", "-o", tmp_path / "labels")
    stored = Labels.open(tmp_path / "labels")
    assert (stored.manifest.labels["kind"], stored.manifest.num_concepts) == ("dummy", 7)
    online = losses(workshop, tmp_path / "online", {"kind": "dummy", "k": 2})
    assert len(online) == 2
    assert online == losses(workshop, tmp_path / "path", str(tmp_path / "labels"))
    assert online == losses(workshop, tmp_path / "both", {"path": str(tmp_path / "labels"), "kind": "dummy"})
