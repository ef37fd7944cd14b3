"""Costs against formulas written out by hand, loops over visible positions, and the paper's numbers."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, GPT2Config, PreTrainedConfig

from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM, account
from cocomix.model.accounting import build_model, count_parameters, matched_config
from cocomix.model.backbone import SUPPORTED_BACKBONES
from tests.model.factories import (
    CONCEPTS,
    D_MODEL,
    LAYERS,
    MAIN_BACKBONES,
    MIXINGS,
    TOPK,
    VOCAB,
    WINDOW,
    backbone_config,
    plain,
    student,
    student_config,
    tokens,
)


def gpt2(d_model: int, layers: int, heads: int) -> GPT2Config:
    return GPT2Config(n_embd=d_model, n_layer=layers, n_head=heads)


PAPER = [  # d, layers, heads, insert_layer, active parameters, the baseline's width
    (512, 8, 8, 3, 69e6, 624),
    (1024, 24, 16, 5, 386e6, 1072),
    (2048, 24, 16, 5, 1.38e9, 2096),
]


@pytest.mark.parametrize("mixing", MIXINGS)
def test_parameters_by_hand(mixing: str) -> None:
    d, inner = D_MODEL, 4 * D_MODEL
    block = 2 * 2 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * inner + inner) + (inner * d + d)
    decoder = VOCAB * d + 64 * d + LAYERS * block + 2 * d
    predictor = d + CONCEPTS * d + CONCEPTS
    compression = 0 if mixing == "none" else CONCEPTS * d + d
    costs = account(student("gpt2", 1, mixing))
    assert costs.total_parameters == decoder + predictor + compression
    active_compression = 0 if mixing == "none" else TOPK * d + d
    assert costs.active_parameters == decoder + predictor + active_compression
    assert account(plain("gpt2")).total_parameters == account(plain("gpt2")).active_parameters == decoder


def test_active_concept_parameters_are_the_papers() -> None:
    """(C + concept_topk)·d, and biases."""
    config = student_config("llama")
    extra = account(CoCoMixForCausalLM(config)).active_parameters - count_parameters(build_model(config.backbone))
    biases = CONCEPTS + D_MODEL + D_MODEL
    assert extra == (CONCEPTS + TOPK) * D_MODEL + biases


@pytest.mark.parametrize(("d_model", "layers", "heads", "insert_layer", "active", "width"), PAPER)
def test_the_papers_sizes(d_model: int, layers: int, heads: int, insert_layer: int, active: float, width: int) -> None:
    config = CoCoMixConfig(backbone=gpt2(d_model, layers, heads), insert_layer=insert_layer)
    with torch.device("meta"):
        costs = account(CoCoMixForCausalLM(config))
    assert costs.active_parameters == pytest.approx(active, rel=0.015)
    assert matched_config(config).hidden_size == width


@pytest.mark.parametrize(("d_model", "concepts"), [(96, 1024), (192, 2048)])
def test_small_models_are_matched_too(d_model: int, concepts: int) -> None:
    backbone = GPT2Config(n_embd=d_model, n_layer=4, n_head=4, vocab_size=4096, n_positions=128)
    config = CoCoMixConfig(backbone=backbone, insert_layer=2, num_concepts=concepts)
    with torch.device("meta"):
        target = account(CoCoMixForCausalLM(config)).active_parameters
    baseline = matched_config(config)
    assert baseline.hidden_size > d_model
    assert count_parameters(build_model(baseline)) == pytest.approx(target, rel=0.02)


def test_the_papers_flops() -> None:
    """Forward, without attention scores, in millions per token: the method's numbers."""
    with torch.device("meta"):
        narrow, wide = (account(build_model(gpt2(d, 8, 8))) for d in (512, 624))
        mixed = account(CoCoMixForCausalLM(CoCoMixConfig(backbone=gpt2(512, 8, 8), insert_layer=3)))
    assert narrow.forward_flops_per_token == pytest.approx(102e6, rel=0.01)
    assert wide.forward_flops_per_token == pytest.approx(137e6, rel=0.01)
    assert mixed.forward_flops_per_token == pytest.approx(167e6, rel=0.01)
    assert mixed.training_flops_per_token / narrow.training_flops_per_token == pytest.approx(1.64, abs=0.01)
    assert mixed.training_flops_per_token / wide.training_flops_per_token == pytest.approx(1.22, abs=0.01)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_flops_without_attention_by_hand(mixing: str) -> None:
    block = 2 * (3 * D_MODEL**2 + D_MODEL**2 + 8 * D_MODEL**2)
    width = 2 if mixing in ("interleave", "residual") else 1
    expected = 1 * block + width * (LAYERS - 1) * block + 2 * VOCAB * D_MODEL + 2 * CONCEPTS * D_MODEL
    expected += 0 if mixing == "none" else 2 * TOPK * D_MODEL
    assert account(student("gpt2", 1, mixing)).forward_flops_per_token == expected


@pytest.mark.parametrize("kind", ["pause", "hidden"])
def test_models_without_concepts_by_hand(kind: str) -> None:
    d, inner, d_teacher = D_MODEL, 4 * D_MODEL, 12
    decoder = account(plain("gpt2"))
    changes = {"mixing": "pause"} if kind == "pause" else {"prediction": "hidden", "teacher_hidden_size": d_teacher}
    predictor = (d * inner + inner) + (inner * d_teacher + d_teacher) + d  # two layers and b_pre
    compression = d_teacher * d + d
    costs = account(student("gpt2", 1, **changes))
    extra = d if kind == "pause" else predictor + compression
    assert costs.total_parameters == costs.active_parameters == decoder.total_parameters + extra
    block = 2 * 12 * d**2
    flops = 1 * block + 2 * (LAYERS - 1) * block + 2 * VOCAB * d
    flops += 0 if kind == "pause" else 2 * (d * inner + inner * d_teacher + d_teacher * d)
    assert costs.forward_flops_per_token == flops


@pytest.mark.parametrize("mixing", ["add", "interleave"])
def test_a_baseline_of_the_same_flops(mixing: str) -> None:
    """Interleaving runs the upper half at twice the positions, which active parameters do not show."""
    config = CoCoMixConfig(gpt2(256, 4, 4), insert_layer=2, num_concepts=4096, mixing=mixing)
    baseline = matched_config(config, "flops", 128)
    wanted = account(build_model(config), 128).forward_flops_per_token
    assert account(build_model(baseline), 128).forward_flops_per_token == pytest.approx(wanted, rel=0.02)
    wider = baseline.hidden_size > matched_config(config).hidden_size
    assert wider is (mixing == "interleave")


def test_a_matched_pause_model_has_the_active_parameters_of_the_concepts_it_does_without() -> None:
    config = CoCoMixConfig(backbone=gpt2(256, 4, 4), insert_layer=1, num_concepts=8192, mixing="pause")
    before = copy.deepcopy(config.to_dict())
    baseline = matched_config(config)
    assert config.to_dict() == before
    assert isinstance(baseline, CoCoMixConfig)
    assert (baseline.mixing, baseline.insert_layer, baseline.hidden_size > 256) == ("pause", 1, True)
    mixed = CoCoMixConfig(backbone=gpt2(256, 4, 4), insert_layer=1, num_concepts=8192)
    with torch.device("meta"):
        target, found = (account(CoCoMixForCausalLM(each)).active_parameters for each in (mixed, baseline))
    assert found == pytest.approx(target, rel=0.03)
    assert matched_config(mixed).hidden_size == baseline.hidden_size


def attention_by_loop(positions: int, windows: list[int | None], heads: int, head_dim: int) -> float:
    """Scores and weighted sum, 2 FLOPs per multiply-add each, over the positions each query sees; whole sequence."""
    total = 0
    for window in windows:
        for query in range(positions):
            visible = sum(1 for key in range(query + 1) if window is None or query - key < window)
            total += 2 * (2 * visible * heads * head_dim)
    return float(total)


@pytest.mark.parametrize("block_size", [3, 11])
@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("gpt2", [None, None, None]),
        ("qwen3", [None, None, None]),
        ("gemma3_text", [WINDOW, None, WINDOW]),
        ("mistral", [WINDOW, WINDOW, WINDOW]),
        ("phi3", [WINDOW, WINDOW, WINDOW]),
    ],
)
def test_attention_flops_equal_a_loop_over_visible_positions(
    family: str, windows: list[int | None], block_size: int
) -> None:
    whole = plain(family)
    added = account(whole, block_size).forward_flops_per_token - account(whole).forward_flops_per_token
    assert added == pytest.approx(attention_by_loop(block_size, windows, 4, 8) / block_size)
    for mixing, width in (("interleave", 2), ("add", 1)):
        model = student(family, 1, mixing)
        added = account(model, block_size).forward_flops_per_token - account(model).forward_flops_per_token
        upper = [None if window is None else width * window for window in windows[1:]]
        expected = attention_by_loop(block_size, windows[:1], 4, 8)
        expected += attention_by_loop(width * block_size, upper, 4, 8)
        assert added == pytest.approx(expected / block_size)


@pytest.mark.parametrize(
    ("family", "heads", "settings", "tolerance"),
    [
        ("llama", 8, {"tie_word_embeddings": False}, 0.02),
        ("llama", 16, {"tie_word_embeddings": False}, 0.04),  # 16 heads of an even size: widths come in steps of 32
        ("qwen3", 16, {"head_dim": 64, "num_key_value_heads": 8}, 0.02),
        ("gemma3_text", 16, {"head_dim": 64, "num_key_value_heads": 8, "sliding_window": 128}, 0.02),
        ("gpt_neox", 16, {"rotary_pct": 0.25}, 0.02),
    ],
)
def test_matched_baselines_are_within_two_percent(
    family: str, heads: int, settings: dict[str, Any], tolerance: float
) -> None:
    backbone = AutoConfig.for_model(
        family,
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=heads,
        **settings,
    )
    config = CoCoMixConfig(backbone=backbone, insert_layer=2, num_concepts=8192)
    before = copy.deepcopy(config.to_dict())
    baseline = matched_config(config)
    assert config.to_dict() == before
    assert type(baseline) is type(backbone)
    with torch.device("meta"):
        target = account(CoCoMixForCausalLM(config)).active_parameters
        found = account(build_model(baseline)).active_parameters
    assert found == pytest.approx(target, rel=tolerance)
    assert baseline.hidden_size > 512
    assert baseline.num_hidden_layers == 6
    small = copy.deepcopy(baseline)
    small.num_hidden_layers, small.vocab_size = 1, VOCAB
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:1]
    assert build_model(small)(tokens()).logits.isfinite().all()  # every width can be run


@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
def test_matched_baselines_of_every_family_can_be_run(family: str) -> None:
    config = student_config(family, num_concepts=2000)
    baseline = matched_config(config)
    assert baseline.hidden_size > D_MODEL
    assert build_model(baseline)(tokens()).logits.shape == (2, 11, VOCAB)


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_building_leaves_the_configuration_alone(family: str) -> None:
    configs: list[PreTrainedConfig] = [student_config(family), backbone_config(family)]
    for config, kind in zip(configs, (CoCoMixForCausalLM, type(plain(family))), strict=True):
        before = copy.deepcopy(config.to_dict())
        model = build_model(config, "eager")
        assert isinstance(model, kind)
        assert model.config._attn_implementation == "eager"
        assert config.to_dict() == before
        assert config._attn_implementation != "eager"
