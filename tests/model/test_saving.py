"""Saving and loading is identity, with nothing but the Auto classes and safetensors."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model.mixing import MIXINGS as FORMS
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import (
    MAIN_BACKBONES,
    MIXINGS,
    OTHER_BACKBONES,
    VOCAB,
    backbone_config,
    concepts,
    student,
    tokens,
)


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


def test_a_cache_can_be_left_out_by_default_as_of_other_models(tmp_path: Path) -> None:
    """`use_cache` was no argument that `from_pretrained` knew, though a trained model's config.json has it."""
    model = student("gpt2", 1)
    model.config.use_cache = False  # as a Trainer leaves it
    model.save_pretrained(tmp_path)
    assert load(tmp_path)(tokens()).past_key_values is not None
    without = CoCoMixForCausalLM.from_pretrained(tmp_path, use_cache=False).eval()
    assert without(tokens()).past_key_values is None
    assert without(tokens(), use_cache=True).past_key_values is not None
    assert load(tmp_path, use_cache=False)(tokens()).past_key_values is None
    asked = {"max_new_tokens": 2, "return_dict_in_generate": True}
    assert without.generate(tokens(), **asked).past_key_values is None
    assert load(tmp_path, use_cache=False).generate(tokens(), **asked).past_key_values is not None  # as in transformers


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


@pytest.mark.parametrize("size", [VOCAB + 5, VOCAB - 5])
@pytest.mark.parametrize("mixing", FORMS)
def test_a_vocabulary_of_another_size_survives_in_every_form(mixing: str, size: int, tmp_path: Path) -> None:
    """What a form keeps of each token changes its size with the vocabulary; the rows that stay are the same ones."""
    model = student("llama", 0, mixing, bigram_rows=40)
    ids = tokens() % (VOCAB - 5)
    with torch.no_grad():
        before = model(ids).logits[..., : VOCAB - 5]
    model.resize_token_embeddings(size)
    torch.testing.assert_close(model(ids).logits[..., : VOCAB - 5], before)
    model.save_pretrained(tmp_path)
    twin = load(tmp_path)
    last = torch.full((1, 3), size - 1)
    assert torch.equal(twin(last).logits, model(last).logits)
    model(last, labels=last).loss.backward()
    assert all(table.weight.grad[-1].any() for table in model.mixing.token_tables())


def test_new_rows_start_as_the_family_starts_them() -> None:
    model = student("llama", 0, "token_values")
    model.resize_token_embeddings(VOCAB + 500, mean_resizing=False)
    for table in (model.get_input_embeddings(), *model.mixing.token_tables()):
        assert table.weight[VOCAB:].std().item() == pytest.approx(0.1, rel=0.1)


# Other settings than those that were saved ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("insert_layer", 9),
        ("concept_topk", 0),
        ("mixing", "bogus"),
        ("prediction", "hidden"),
        ("repeats", 0),
        ("concept_loss_weight", -1.0),
        ("head_chunk_size", 0),
        ("num_hidden_layers", 2),
        ("backbone", "gpt2"),
    ],
)
def test_settings_given_while_loading_are_checked(name: str, value: object, tmp_path: Path) -> None:
    student("llama").save_pretrained(tmp_path)
    for kind in (CoCoMixForCausalLM, AutoModelForCausalLM, AutoConfig):
        with pytest.raises(CoCoMixError, match="teacher_hidden_size" if name == "prediction" else f"{name}={value!r}"):
            kind.from_pretrained(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("insert_layer", 2),
        ("backbone", {"num_hidden_layers": 2}),
        ("backbone", backbone_config("llama", num_hidden_layers=5)),
        ("tie_word_embeddings", False),
    ],
)
def test_weights_of_another_decoder_are_refused(name: str, value: PreTrainedConfig | object, tmp_path: Path) -> None:
    """Blocks would start anew, or be left out, behind no more than a warning."""
    student("llama", backbone=backbone_config("llama", tie_word_embeddings=True)).save_pretrained(tmp_path)
    with pytest.raises(CoCoMixError, match=r"(lower|upper|lm_head)\..*insert_layer="):
        CoCoMixForCausalLM.from_pretrained(tmp_path, **{name: value})


def test_settings_that_fit_the_weights_are_taken(tmp_path: Path) -> None:
    model = student("llama")
    model.save_pretrained(tmp_path)
    twin = load(tmp_path, mixing="residual", backbone={"attention_dropout": 0.5})
    assert (twin.mixing.name, twin.lower.config.attention_dropout, twin.lower.config.hidden_size) == (
        "residual",
        0.5,
        model.config.hidden_size,
    )
    assert all(torch.equal(found, model.state_dict()[name]) for name, found in twin.state_dict().items())


@pytest.mark.parametrize("mixing", ["plain", "pause", "values", "token_values", "next_concept"])
def test_what_is_new_beside_the_decoder_starts_as_in_a_new_model(mixing: str, tmp_path: Path) -> None:
    student("llama", 1, "plain").save_pretrained(tmp_path)
    twin, loading = CoCoMixForCausalLM.from_pretrained(
        tmp_path, mixing=mixing, bigram_rows=40, num_concepts=48, concept_topk=6, output_loading_info=True
    )
    new = CoCoMixForCausalLM(twin.config).state_dict()
    assert {"bigram.table.weight", "bigram.gains"} <= set(loading["missing_keys"])
    for name in loading["missing_keys"]:
        found, spread = twin.state_dict()[name], new[name].std()
        torch.testing.assert_close(found.std(), spread, rtol=0.8, atol=1e-4, msg=name)  # as few as 32 numbers
        torch.testing.assert_close(found.mean(), new[name].mean(), rtol=0.1, atol=float(spread) + 1e-6, msg=name)
