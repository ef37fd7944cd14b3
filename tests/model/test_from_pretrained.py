"""CoCoMix on a pretrained decoder and back: weights, the loss where nothing is mixed in, and what is refused."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from cocomix import from_pretrained_backbone
from cocomix.model import CoCoMixForCausalLM, plain_decoder
from cocomix.model.backbone import SUPPORTED_BACKBONES
from cocomix.model.from_pretrained import check_same_decoder, load_backbone_weights
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import CONCEPTS, LAYERS, TOPK, backbone_config, concepts, plain, student, tokens

SIZES = {"num_concepts": CONCEPTS, "concept_topk": TOPK}


def started(model: PreTrainedModel | Path, **settings: object) -> CoCoMixForCausalLM:
    return from_pretrained_backbone(model, 1, **{**SIZES, **settings})


@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
def test_adding_starts_neutral(family: str) -> None:
    """The paper's form of adding, with the mean, does so with layer norms alone."""
    whole = plain(family)
    expected = whole(tokens(), labels=tokens())
    neutral = started(whole)(tokens(), labels=tokens())
    torch.testing.assert_close(neutral.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert abs(neutral.loss - expected.loss) < 1e-5
    with_mean = started(whole, add_mean=True)(tokens(), labels=tokens())
    assert (abs(with_mean.loss - expected.loss) < 1e-5) == (family in ("gpt2", "gpt_neox"))


def test_the_first_steps_change_the_loss_through_the_concepts() -> None:
    model = started(plain("llama")).train()
    optimizer = torch.optim.AdamW([*model.predictor.parameters(), *model.mixing.parameters()], lr=1e-2)
    losses = []
    for _ in range(3):
        output = model(tokens(), labels=tokens(), concept_labels=concepts())
        losses.append((output.ntp_loss.item(), output.concept_loss.item()))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert losses[2][0] < losses[1][0] < losses[0][0]
    assert losses[2][1] < losses[0][1]


def test_from_a_folder_with_settings_and_a_seed(tmp_path: Path) -> None:
    whole = plain("qwen3")
    whole.generation_config.max_new_tokens = 3
    whole.save_pretrained(tmp_path)
    model = started(tmp_path, mixing="residual", concept_loss_weight=0.3, seed=5)
    assert (model.config.mixing, model.config.concept_loss_weight) == ("residual", 0.3)
    assert model.lm_head.weight is model.get_input_embeddings().weight  # tied, as the pretrained model's
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)
    assert not model.mixing.compression.weight.any()
    before = torch.random.get_rng_state()
    twin, other = started(whole, seed=5), started(whole, seed=6)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(twin.predictor.head.weight, model.predictor.head.weight)
    assert not torch.equal(twin.predictor.head.weight, other.predictor.head.weight)
    assert model.generate(tokens()).shape == (2, 14)


def test_weights_are_copied_in_their_dtype() -> None:
    whole = plain("gpt2").to(torch.float64)
    model = started(whole)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    assert whole.get_input_embeddings().weight.any()


@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
def test_the_decoder_of_a_model_that_mixes_nothing_in(family: str) -> None:
    model = student(family, mixing="none").eval()
    decoder = plain_decoder(model)
    assert type(decoder) is type(plain(family))
    assert torch.equal(decoder(tokens()).logits, model(tokens()).logits)
    with torch.no_grad():
        decoder.get_input_embeddings().weight.zero_()
    assert model.get_input_embeddings().weight.any()  # a copy


# What is refused -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(CoCoMixError, match="nothing"):
        started(tmp_path / "nothing")
    with pytest.raises(CoCoMixError, match=f"insert_layer={LAYERS} is out of range"):
        from_pretrained_backbone(plain("gpt2"), LAYERS, **SIZES)
    with pytest.raises(CoCoMixError, match="'cocomix'"):
        started(student("gpt2"))


def test_weights_of_another_shape_or_depth() -> None:
    with pytest.raises(CoCoMixError, match=r"size mismatch"):
        load_backbone_weights(student("llama"), plain("llama", intermediate_size=32))
    with pytest.raises(CoCoMixError, match=r"lack upper\.layers\.1\."):
        load_backbone_weights(student("llama"), plain("llama", num_hidden_layers=LAYERS - 1))
    with pytest.raises(CoCoMixError, match=r"no upper\.layers\.2\."):
        load_backbone_weights(student("llama"), plain("llama", num_hidden_layers=LAYERS + 1))


def test_a_decoder_that_computes_something_else() -> None:
    config = backbone_config("gpt2", resid_pdrop=0.3, initializer_range=0.7, eos_token_id=5)
    check_same_decoder(config, backbone_config("gpt2"), "there")
    for family, setting in (("gpt2", {"layer_norm_epsilon": 1e-3}), ("llama", {"rms_norm_eps": 1e-3})):
        with pytest.raises(CoCoMixError, match=f"has {next(iter(setting))} = .* but the pretrained there has 0.001"):
            check_same_decoder(backbone_config(family), backbone_config(family, **setting), "there")
    with pytest.raises(CoCoMixError, match=r"model_type.*'gpt2'.*'llama'"):
        check_same_decoder(backbone_config("gpt2"), backbone_config("llama"), "there")


@pytest.mark.parametrize(
    "settings",
    [
        {"mixing": "add"},
        {"mixing": "interleave"},
        {"mixing": "values"},
        {"mixing": "loop"},
        {"mixing": "pause"},
        {"mixing": "none", "bigram_rows": 8},
    ],
)
def test_a_model_that_is_more_than_its_decoder(settings: dict[str, object]) -> None:
    with pytest.raises(CoCoMixError, match=str(settings["mixing"])):
        plain_decoder(student("llama", **settings))
