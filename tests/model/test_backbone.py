"""The split: two halves are the whole, whatever the family, the split point, the mask and the attention kernel."""

import math

import pytest
import torch
from transformers import AutoConfig, GPT2Config

from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model.accounting import build_model
from cocomix.model.backbone import SUPPORTED_BACKBONES, backbone_of, build_halves
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import (
    INSERT_LAYERS,
    LAYERS,
    MAIN_BACKBONES,
    MIXINGS,
    OTHER_BACKBONES,
    WINDOW,
    backbone_config,
    concepts,
    plain,
    split_student,
    student,
    student_config,
    tokens,
)

MASKS = {
    "no mask": None,
    "all ones": torch.ones(2, 11, dtype=torch.long),
    "left": torch.tensor([[0, 0, 0] + [1] * 8, [1] * 11]),
    "right": torch.tensor([[1] * 8 + [0] * 3, [1] * 11]),
}


def positions_of(mask: torch.Tensor | None) -> torch.Tensor | None:
    """What a CoCoMix model counts by itself and a plain decoder must be told."""
    return None if mask is None else (mask.cumsum(-1) - 1).clamp_min(0)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_without_mixing_the_halves_equal_the_plain_model_bit_for_bit(family: str, attn: str) -> None:
    whole = plain(family, attn=attn)
    for insert_layer in INSERT_LAYERS:
        halves = split_student(whole, insert_layer, attn)
        for name, mask in MASKS.items():
            ours = halves(tokens(), attention_mask=mask).logits
            theirs = whole(tokens(), attention_mask=mask, position_ids=positions_of(mask)).logits
            kept = slice(None) if mask is None else mask.bool()
            assert torch.equal(ours[kept], theirs[kept]), (insert_layer, name)


@pytest.mark.parametrize("family", OTHER_BACKBONES)
def test_other_families_split_exactly_too(family: str) -> None:
    whole = plain(family)
    for insert_layer in INSERT_LAYERS:
        halves = split_student(whole, insert_layer)
        for mask in (None, MASKS["left"]):
            ours = halves(tokens(), attention_mask=mask).logits
            theirs = whole(tokens(), attention_mask=mask, position_ids=positions_of(mask)).logits
            kept = slice(None) if mask is None else mask.bool()
            assert torch.equal(ours[kept], theirs[kept]), insert_layer


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_split_losses_and_gradients_equal_the_plain_model(family: str) -> None:
    whole = plain(family)
    halves = split_student(whole, 1)
    theirs = whole(tokens(), labels=tokens()).loss
    ours = halves(tokens(), labels=tokens()).loss
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(
        halves.get_input_embeddings().weight.grad, whole.get_input_embeddings().weight.grad, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
def test_the_future_cannot_change_the_past(family: str, mixing: str) -> None:
    before, after = tokens(1, 11), tokens(1, 11)
    after[:, 7:] = (after[:, 7:] + 5) % 50 + 1
    for insert_layer in INSERT_LAYERS if family in MAIN_BACKBONES else (1,):
        model = student(family, insert_layer, mixing)
        for mask in (None, torch.ones(1, 11, dtype=torch.long)):
            first, second = model(before, attention_mask=mask).logits, model(after, attention_mask=mask).logits
            torch.testing.assert_close(first[:, :7], second[:, :7], rtol=0, atol=1e-5)
            assert (first[:, 7:] - second[:, 7:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
def test_a_training_step_reaches_every_parameter_and_lowers_the_loss(family: str) -> None:
    model = student(family, 1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        output = model(tokens(), labels=tokens(), concept_labels=concepts(), output_logits=False)
        losses.append(output.loss.item())
        optimizer.zero_grad()
        output.loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name  # noqa: PT018
        optimizer.step()
    assert losses[1] < losses[0]


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "mistral", "olmo3", "phi3"])
def test_sliding_windows_double_where_concepts_are_interleaved(family: str) -> None:
    for mixing, expected in (("interleave", 2 * WINDOW), ("residual", 2 * WINDOW), ("add", WINDOW), ("none", WINDOW)):
        model = student(family, 1, mixing)
        assert model.lower.config.sliding_window == WINDOW
        assert model.upper.config.sliding_window == expected
        assert model.config.backbone.sliding_window == WINDOW


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "mistral"])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_token_beyond_the_window_has_no_influence(family: str, mixing: str, cached: bool) -> None:
    """One block, so that influence does not travel further than the window reaches."""
    layer_types = {"layer_types": ["sliding_attention"]} if family.startswith("gemma") else {}
    backbone = backbone_config(family, num_hidden_layers=1, **layer_types)
    model = student(family, 0, mixing, backbone=backbone)
    base, changed = tokens(1, 12), tokens(1, 12)
    changed[0, 4] = changed[0, 4] % 50 + 1
    if cached:
        outputs = []
        for ids in (base, changed):
            cache = model(ids[:, :6]).past_key_values
            rest = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(6, 12)]
            outputs.append(torch.cat(rest, dim=1))
        moved = (outputs[0] - outputs[1]).abs().amax(-1)[0]
        offset = 6
    else:
        moved = (model(base).logits - model(changed).logits).abs().amax(-1)[0]
        offset = 0
    seen = {offset + i for i, difference in enumerate(moved.tolist()) if difference > 1e-6}
    assert seen == {p for p in range(4, 4 + WINDOW) if p >= offset}


def test_per_layer_lists_and_positions_follow_the_split() -> None:
    config = backbone_config("gemma3_text")
    lower, upper = build_halves(config, 2, 2, "eager")
    assert lower.config.layer_types == ["sliding_attention", "full_attention"]
    assert upper.config.layer_types == ["sliding_attention"]
    assert (lower.config.max_position_embeddings, upper.config.max_position_embeddings) == (64, 128)
    assert config.num_hidden_layers == LAYERS
    assert config.sliding_window == WINDOW
    smol_lower, smol_upper = build_halves(backbone_config("smollm3"), 1, 2, "eager")
    assert (smol_lower.config.no_rope_layers, smol_upper.config.no_rope_layers) == ([1], [0, 1])


def test_the_upper_half_has_no_embeddings() -> None:
    model = student("gpt2")
    assert [name for name, _ in model.upper.named_parameters() if "wte" in name or "wpe" in name] == []
    assert [name for name, _ in model.lower.named_parameters() if "ln_f" in name] == []


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bert", "it is an encoder, not a decoder"),
        ("t5", "it is an encoder with a decoder"),
        ("mixtral", "it is a mixture of experts"),
        ("gemma3", "it is more than a language model; its own decoder is model_type 'gemma3_text'"),
        ("opt", "nobody has tested"),
    ],
)
def test_an_unsupported_family_is_refused_with_the_reason_and_the_list(model_type: str, reason: str) -> None:
    config = AutoConfig.for_model(model_type)
    with pytest.raises(CoCoMixError, match=f"'{model_type}' is not supported: {reason}") as refused:
        backbone_of(config)
    assert "use one of gpt2, gpt_neox" in str(refused.value)
    assert "docs/models.md" in str(refused.value)
    with pytest.raises(CoCoMixError, match="not supported"):
        build_model(config)


def test_a_setting_that_counts_blocks_is_refused() -> None:
    backbone = backbone_config("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(CoCoMixError, match="scale_attn_by_inverse_layer_idx"):
        CoCoMixForCausalLM(CoCoMixConfig(backbone=backbone, insert_layer=1, num_concepts=40))


# Gemma 2: what caps its scores and logits --------------------------------------------------------------------------


def test_pytorchs_kernel_is_not_used_where_scores_are_capped() -> None:
    config = student_config("gemma2")
    assert CoCoMixForCausalLM(config).config._attn_implementation == "eager"
    with pytest.raises(CoCoMixError, match="'eager'"):
        CoCoMixForCausalLM._from_config(config, attn_implementation="sdpa")


def test_the_caps_matter() -> None:
    """A cap on scores in each half, and one on logits; without either the tests above would prove nothing."""
    for setting in ("attn_logit_softcapping", "final_logit_softcapping"):
        capped = student("gemma2", 1)
        free = student("gemma2", 1, backbone=backbone_config("gemma2", **{setting: None}))
        assert (capped(tokens()).logits - free(tokens()).logits).abs().max() > 1e-2, setting


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
def test_nothing_is_hooked(family: str, mixing: str) -> None:
    """Hooks on modules that others wrap run on the wrong module, or not at all."""
    model = CoCoMixForCausalLM(student_config(family, 1, mixing))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


# LongRoPE ------------------------------------------------------------------------------------------------------------


def test_longrope_changes_frequencies_at_the_same_token_in_both_halves() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
    }
    ropes = (rope | {"long_factor": [factor] * 4} for factor in (1.0, 3.0))
    switch = {"original_max_position_embeddings": 8}
    backbones = [backbone_config("phi3", rope_parameters=each | switch, **switch) for each in ropes]
    for mixing in ("interleave", "add"):
        models = [student("phi3", 1, mixing, backbone=backbone) for backbone in backbones]
        for seq, differs in ((8, False), (9, True)):
            logits = [model(tokens(1, seq)).logits for model in models]
            assert torch.equal(*logits) != differs, (mixing, seq)
        assert models[0].lower.config.original_max_position_embeddings == 8


# Initialisation ------------------------------------------------------------------------------------------------------


def test_concept_layers_and_biases_start_like_the_backbone() -> None:
    backbone = GPT2Config(vocab_size=64, n_embd=256, n_layer=2, n_head=4, n_positions=32, initializer_range=0.02)
    torch.manual_seed(0)
    model = CoCoMixForCausalLM(CoCoMixConfig(backbone=backbone, insert_layer=1, num_concepts=1024))
    for weight in (model.predictor.head.weight, model.mixing.compression.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.01)
        assert abs(weight.mean().item()) < 2e-4
    for bias in (model.predictor.head.bias, model.mixing.compression.bias, model.predictor.pre_bias):
        assert not bias.any()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any(), name


@pytest.mark.parametrize("insert_layer", [0, 1, 5])
def test_gpt2_output_projections_are_scaled_by_the_whole_depth(insert_layer: int) -> None:
    backbone = GPT2Config(vocab_size=64, n_embd=192, n_layer=6, n_head=4, n_positions=32, initializer_range=0.02)
    torch.manual_seed(0)
    model = CoCoMixForCausalLM(CoCoMixConfig(backbone=backbone, insert_layer=insert_layer, num_concepts=64))
    found = {n: p.std().item() for n, p in model.named_parameters() if n.endswith("c_proj.weight")}
    assert len(found) == 12
    for name, std in found.items():
        assert std == pytest.approx(0.02 / math.sqrt(2 * 6), rel=0.02), name
    others = {n: p.std().item() for n, p in model.named_parameters() if n.endswith(("c_attn.weight", "c_fc.weight"))}
    for name, std in others.items():
        assert std == pytest.approx(0.02, rel=0.02), name


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_the_same_seed_gives_the_same_model(family: str) -> None:
    models = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        models.append(CoCoMixForCausalLM(student_config(family)).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["lm_head.weight"], models[2]["lm_head.weight"])
