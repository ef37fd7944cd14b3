"""A whole small world: text, its tokenizer and blocks, a random teacher's labels, and random students that fit."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.concepts import ConceptDictionary, ConceptTeacher
from cocomix.data import PrepareSettings, Tokens, prepare
from cocomix.labelling import Labels, label_data
from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model.accounting import build_model
from tests.evaluation.conftest import CONCEPTS, TOPK, backbone
from tests.given_teacher import GivenConfig, given

WORDS = ("list", "of", "the", "items", "and", "a", "string", "returns", "value", "café", "key", "index", "file")


@dataclass(frozen=True)
class World:
    data: Tokens
    labels: Labels
    tokenizer: PreTrainedTokenizerFast

    def student(self, mixing: str = "interleave", context: int = 16) -> CoCoMixForCausalLM:
        torch.manual_seed(0)
        sizes = {"insert_layer": 1, "num_concepts": CONCEPTS, "concept_topk": TOPK, "mixing": mixing}
        shape = backbone(vocab_size=self.data.manifest.vocab_size, n_positions=context)
        return CoCoMixForCausalLM(CoCoMixConfig(backbone=shape, **sizes)).eval()

    def plain(self, context: int = 16) -> PreTrainedModel:
        torch.manual_seed(0)
        return build_model(backbone(vocab_size=self.data.manifest.vocab_size, n_positions=context)).eval()


def text(documents: int = 40) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(WORDS), (documents, 30), generator=generator)
    return [" ".join(WORDS[index] for index in row) + "\n" for row in draws.tolist()]


def build_world(folder: Path) -> World:
    sources = folder / "sources"
    sources.mkdir()
    for number, document in enumerate(text()):
        (sources / f"{number:03d}.txt").write_text(document, encoding="utf-8")
    settings = PrepareSettings(
        sources=(str(sources),), vocab_size=290, block_size=10, tokens_per_file=500, validation_fraction=0.2
    )
    data = prepare(settings, folder / "data")
    torch.manual_seed(5)
    model = build_model(backbone(vocab_size=data.manifest.vocab_size))
    weights = [torch.randn(shape) for shape in ((16, CONCEPTS), (CONCEPTS,), (CONCEPTS, 16), (16,))]
    teacher = ConceptTeacher(model, ConceptDictionary(*weights, k=8, normalize="layer_norm"), 1)
    labels = label_data(data.path, GivenConfig(name=given(teacher), k=3), folder / "labels")
    assert labels is not None
    return World(data, labels, data.tokenizer())
