"""Tiny teachers and dictionaries; small enough that naive twins are exact and fast."""

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cocomix.concepts import ConceptDictionary, determining

VOCAB, D_MODEL, LAYERS, CONCEPTS = 61, 32, 3, 48
BACKBONES = ("gpt2", "llama", "qwen3", "gemma3")


def refused_by(first: dict[str, str], second: dict[str, str]) -> tuple[str, ...]:
    """Which parts of two fingerprints make them those of other labels."""
    first, second = determining(first), determining(second)
    return tuple(name for name in {**first, **second} if first.get(name) != second.get(name))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Threads cost more than they give at this size, and much more when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(kind: str, *, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A random model of `LAYERS` blocks with weights large enough for its losses to differ between positions."""
    torch.manual_seed(seed)
    shared = {
        "vocab_size": VOCAB,
        "hidden_size": D_MODEL,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB,
            n_embd=D_MODEL,
            n_layer=LAYERS,
            n_head=4,
            n_positions=64,
            initializer_range=0.2,
            **overrides,
        )
        return GPT2LMHeadModel(config).eval()
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shared, **overrides)).eval()
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shared, head_dim=8, **overrides)).eval()
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**shared, head_dim=8, sliding_window=4, query_pre_attn_scalar=8, **overrides)
    ).eval()


def make_dictionary(kind: str = "topk", *, d_model: int = D_MODEL, normalize: str = "layer_norm") -> ConceptDictionary:
    """A random dictionary; thresholds are chosen so that a few concepts are active at each position."""
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(shape, generator=generator) * 0.3
        for shape in ((d_model, CONCEPTS), (CONCEPTS,), (CONCEPTS, d_model), (d_model,))
    ]
    options = {"topk": {"k": 8}, "jumprelu": {"threshold": torch.full((CONCEPTS,), 1.5)}, "relu": {}}[kind]
    return ConceptDictionary(*weights, normalize=normalize, **options)


class TokenBlocks:
    """Random token blocks in memory."""

    def __init__(self, blocks: int, seed: int, block_size: int) -> None:
        self.tokens = torch.from_numpy(np.random.default_rng(seed).integers(1, VOCAB, (blocks, block_size)))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index]}


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(1, VOCAB, (3, 11), generator=torch.Generator().manual_seed(2))
