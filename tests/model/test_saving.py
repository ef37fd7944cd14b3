"""Saving and loading is identity, with nothing but the Auto classes and safetensors."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM
from tests.model.factories import MAIN_BACKBONES, MIXINGS, OTHER_BACKBONES, VOCAB, concepts, student, tokens


def load(path: Path, **kwargs: object) -> CoCoMixForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(path, **kwargs)
    assert isinstance(model, CoCoMixForCausalLM)
    return model.eval()


def settings_of(config: CoCoMixConfig) -> dict[str, object]:
    """What a configuration says about the model, without where it came from and the dtype it was loaded in."""
    values: dict[str, object] = config.to_dict()
    values["backbone"] = {key: value for key, value in config.backbone.to_dict().items() if key != "dtype"}
    del values["_name_or_path"]
    return values


def is_tied(model: CoCoMixForCausalLM) -> bool:
    return model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("family", [*MAIN_BACKBONES, *OTHER_BACKBONES])
def test_round_trip_is_identity(family: str, tmp_path: Path) -> None:
    for insert_layer in (0, 2) if family in MAIN_BACKBONES else (1,):
        model = student(family, insert_layer)
        folder = tmp_path / str(insert_layer)
        model.save_pretrained(folder)
        assert {path.name for path in folder.iterdir()} == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
        }
        twin, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        twin.eval()
        assert torch.equal(twin(tokens()).logits, model(tokens()).logits)
        assert settings_of(AutoConfig.from_pretrained(folder)) == settings_of(twin.config) == settings_of(model.config)
        assert {n: p.shape for n, p in twin.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
        assert is_tied(twin) == is_tied(model) == model.config.tie_word_embeddings


@pytest.mark.parametrize("mixing", MIXINGS)
def test_every_mixing_survives(mixing: str, tmp_path: Path) -> None:
    model = student("gemma3_text", 1, mixing)
    model.save_pretrained(tmp_path)
    twin = load(tmp_path)
    assert twin.config.mixing == mixing
    assert twin.upper.config.sliding_window == model.upper.config.sliding_window
    assert torch.equal(twin(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize(("family", "tied"), [("gpt2", True), ("qwen3", True), ("llama", False), ("gpt_neox", False)])
def test_ties_survive_a_training_step(family: str, tied: bool, tmp_path: Path) -> None:
    model = student(family)
    assert is_tied(model) == tied
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        model(tokens(), labels=tokens(), concept_labels=concepts()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    embedding = {"gpt2": "lower.wte.weight", "gpt_neox": "lower.embed_in.weight"}.get(
        family, "lower.embed_tokens.weight"
    )
    assert embedding in names
    assert ("lm_head.weight" in names) != tied
    twin = load(tmp_path)
    assert is_tied(twin) == tied
    assert torch.equal(twin(tokens()).logits, model(tokens()).logits)
    loss = twin(tokens(), labels=tokens()).loss
    loss.backward()
    assert twin.get_input_embeddings().weight.grad.any()


def test_loading_does_not_initialise_again(tmp_path: Path) -> None:
    model = student("gpt2")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.125)
    model.save_pretrained(tmp_path)
    assert all((parameter == 0.125).all() for parameter in load(tmp_path).parameters())


def test_kernel_and_dtype_can_be_chosen(tmp_path: Path) -> None:
    model = student("gemma3_text")
    model.save_pretrained(tmp_path)
    eager = load(tmp_path, attn_implementation="eager")
    assert {part.config._attn_implementation for part in (eager, eager.lower, eager.upper)} == {"eager"}
    torch.testing.assert_close(eager(tokens()).logits, model(tokens()).logits, rtol=1e-5, atol=1e-5)
    half = load(tmp_path, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(half(tokens()).logits.float(), model(tokens()).logits, rtol=0.1, atol=0.3)
    half.save_pretrained(tmp_path / "half")
    again = load(tmp_path / "half")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    assert torch.equal(again(tokens()).logits, half(tokens()).logits)


def test_generation_settings_are_kept(tmp_path: Path) -> None:
    model = student("llama")
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).max_new_tokens == 3
    assert load(tmp_path).generate(tokens()).shape == (2, 14)


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_a_grown_vocabulary_survives(family: str, tmp_path: Path) -> None:
    model = student(family)
    model.resize_token_embeddings(VOCAB + 5)
    assert model.config.vocab_size == model.config.backbone.vocab_size == VOCAB + 5
    model.save_pretrained(tmp_path)
    twin = load(tmp_path)
    assert is_tied(twin) == is_tied(model)
    assert twin(tokens()).logits.shape == (2, 11, VOCAB + 5)
    assert torch.equal(twin(tokens()).logits, model(tokens()).logits)
