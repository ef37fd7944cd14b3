"""Tiny random students of every supported family; concept layers are scaled up so that a fault in them shows."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model.accounting import build_model
from cocomix.model.backbone import SUPPORTED_BACKBONES, split_state_dict

VOCAB, D_MODEL, LAYERS, HEADS, CONCEPTS, TOPK, WINDOW = 61, 32, 3, 4, 48, 6, 4
MAIN_BACKBONES = ("gpt2", "llama", "qwen3", "gemma3_text")
OTHER_BACKBONES = tuple(name for name in SUPPORTED_BACKBONES if name not in MAIN_BACKBONES)
MIXINGS = ("interleave", "residual", "add", "none")
INSERT_LAYERS = (0, 1, LAYERS - 1)

_EXTRA: dict[str, dict[str, Any]] = {
    "gpt_neox": {"rotary_pct": 0.5, "tie_word_embeddings": False},
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": WINDOW},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "gemma3_text": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "final_logit_softcapping": 20.0,
    },
    "gemma": {"head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 20.0,
    },
    "olmo3": {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "phi3": {"sliding_window": WINDOW},
}


def backbone_config(family: str, **overrides: Any) -> PreTrainedConfig:
    """A decoder of three blocks; windows are shorter than the sequences of the tests, dropout is off."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    if family == "gpt2":
        values |= {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
        values |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    else:
        values |= {
            "hidden_size": D_MODEL,
            "intermediate_size": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 64,
        }
        if family != "gpt_neox":
            values["num_key_value_heads"] = 2
    return AutoConfig.for_model(family, **(values | _EXTRA.get(family, {}) | overrides))


def student_config(family: str, insert_layer: int = 1, mixing: str = "interleave", **overrides: Any) -> CoCoMixConfig:
    """A CoCoMix configuration over `backbone_config(family)`."""
    backbone = overrides.pop("backbone", None) or backbone_config(family)
    settings = {"num_concepts": CONCEPTS, "concept_topk": TOPK} | overrides
    return CoCoMixConfig(backbone=backbone, insert_layer=insert_layer, mixing=mixing, **settings)


def student(
    family: str,
    insert_layer: int = 1,
    mixing: str = "interleave",
    *,
    seed: int = 0,
    attn: str = "sdpa",
    **overrides: Any,
) -> CoCoMixForCausalLM:
    """A random student in evaluation mode whose concepts matter: changing them moves its logits by about one."""
    config = student_config(family, insert_layer, mixing, **overrides)
    config._attn_implementation = kernel(family, attn)
    torch.manual_seed(seed)
    model = CoCoMixForCausalLM(config).eval()
    strengthen(model, seed)
    return model


def concept_parameters(model: CoCoMixForCausalLM) -> list[torch.nn.Parameter]:
    """Those of the predictor and of the form of mixing."""
    return [parameter for name, parameter in model.named_parameters() if name.startswith(("predictor.", "mixing."))]


def mix(model: CoCoMixForCausalLM, hidden: torch.Tensor) -> torch.Tensor:
    """The upper half's input, from the lower half's output."""
    return model.mixing(hidden, model.predictor(hidden).concepts)


def strengthen(model: CoCoMixForCausalLM, seed: int = 0) -> None:
    """Random biases and larger concept layers, in place."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in concept_parameters(model):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def kernel(family: str, attn: str) -> str:
    """The attention kernel to use where `attn` is wanted: PyTorch's does not serve Gemma 2."""
    return "eager" if family == "gemma2" else attn


def plain(family: str, *, seed: int = 0, attn: str = "sdpa", **overrides: Any) -> PreTrainedModel:
    """A random plain decoder in evaluation mode."""
    torch.manual_seed(seed)
    return build_model(backbone_config(family, **overrides), kernel(family, attn)).eval()


def split_student(model: PreTrainedModel, insert_layer: int, attn: str = "sdpa") -> CoCoMixForCausalLM:
    """A student with `mixing="none"` that carries a plain decoder's weights."""
    config = student_config("", insert_layer, "none", backbone=model.config)
    config._attn_implementation = kernel(model.config.model_type, attn)
    twin = CoCoMixForCausalLM(config).eval()
    missing, unexpected = twin.load_state_dict(split_state_dict(model, insert_layer), strict=False)
    assert not unexpected
    assert all(name.startswith(("predictor.", "mixing.")) for name in missing), missing
    return twin


def tokens(batch: int = 2, seq: int = 11, seed: int = 3) -> Tensor:
    """Random tokens without the padding id. [batch, seq]"""
    return torch.randint(1, VOCAB, (batch, seq), generator=torch.Generator().manual_seed(seed))


def concepts(batch: int = 2, seq: int = 11, k_attr: int = 3, seed: int = 4) -> Tensor:
    """Random concept labels; the last position and some entries are ignored. [batch, seq, k_attr]"""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CONCEPTS, (batch, seq, k_attr), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = -100
    labels[:, -1] = -100
    return labels
