import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    MixtralConfig,
    OPTConfig,
)

from cocomix.concepts import decoder as decoder_module
from cocomix.concepts.decoder import FrozenDecoder, decoder_blocks
from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.runtime.errors import CoCoMixError

from .conftest import BACKBONES, D_MODEL, LAYERS, VOCAB, make_model

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
OTHERS = {
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "opt": OPTConfig(**{**SMALL, "ffn_dim": 64, "word_embed_proj_dim": D_MODEL}),
    "mixtral": MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=LAYERS),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, attn_implementation="eager"),
}


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("backbone", [*BACKBONES, *OTHERS])
def test_blocks_are_found_and_hidden_states_are_theirs(backbone, input_ids):
    torch.manual_seed(0)
    model = make_model(backbone) if backbone in BACKBONES else AutoModelForCausalLM.from_config(OTHERS[backbone]).eval()
    assert len(decoder_blocks(model)) == LAYERS
    expected = model(input_ids, output_hidden_states=True, use_cache=False)
    decoder = FrozenDecoder(model, 1)
    torch.testing.assert_close(decoder.hidden_states(input_ids), expected.hidden_states[2])
    loss = torch.nn.functional.cross_entropy(expected.logits[:, :-1].transpose(1, 2), input_ids[:, 1:], reduction="sum")
    torch.testing.assert_close(decoder.loss(input_ids), loss)
    result = decoder.loss_gradient(input_ids)
    torch.testing.assert_close(result.loss, loss)
    assert result.gradient[:, :-1].any()
    assert not result.gradient[:, -1].any()


def test_a_capped_head_goes_through_the_models_own_forward():
    model = AutoModelForCausalLM.from_config(OTHERS["gemma2"])
    assert FrozenDecoder(model, 0)._head is None
    assert FrozenDecoder(make_model("gpt2"), 0)._head is not None


@pytest.mark.parametrize("bias", [False, True])
def test_the_chunked_head_equals_cross_entropy(monkeypatch, bias):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 20, bias=bias)
    rows, targets = torch.randn(7, 8, requires_grad=True), torch.randint(20, (7,))
    loss = torch.nn.functional.cross_entropy(head(rows), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, rows)
    monkeypatch.setattr(decoder_module, "_CHUNK_ELEMENTS", 40)
    monkeypatch.setattr(decoder_module, "_CPU_COLUMNS", 6)
    found_loss, found_gradient = decoder_module._head_loss(head, rows.detach(), targets, True)
    torch.testing.assert_close(found_loss, loss.detach())
    torch.testing.assert_close(found_gradient, gradient)
    assert decoder_module._head_loss(head, rows.detach(), targets, False)[1] is None


def test_weights_get_no_gradient_and_no_graph_reaches_below_the_hook(input_ids):
    model = make_model("llama").train().requires_grad_(True)
    decoder = FrozenDecoder(model, 1)
    result = decoder.loss_gradient(input_ids)
    assert not model.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert not result.hidden.requires_grad
    assert not result.gradient.requires_grad


@pytest.mark.parametrize("call", ["hidden_states", "loss", "loss_gradient"])
def test_hooks_are_removed_after_an_exception(call, input_ids):
    model = make_model("gpt2")
    decoder = FrozenDecoder(model, 1)

    def fail(hidden):
        raise RuntimeError("in the hook")

    decoder.hidden_states(input_ids)
    decoder.loss_gradient(input_ids)
    assert hooks(model) == 0
    options = {"replace": fail} if call == "loss" else {}
    with pytest.raises((RuntimeError, IndexError)):
        getattr(decoder, call)(input_ids if options else input_ids + VOCAB, **options)
    assert hooks(model) == 0


def test_replacing_the_output_changes_the_loss(input_ids):
    decoder = FrozenDecoder(make_model("gpt2"), 1)
    clean = decoder.loss(input_ids)
    assert torch.equal(decoder.loss(input_ids, replace=lambda hidden: hidden), clean)
    assert decoder.loss(input_ids, replace=torch.zeros_like) != clean


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_a_layer_out_of_range_is_refused(layer):
    with pytest.raises(CoCoMixError, match=rf"layer {layer} is out of range: the teacher has blocks 0 to {LAYERS - 1}"):
        FrozenDecoder(make_model("gpt2"), layer)


def test_the_next_token_gradient_refuses_other_attention(input_ids):
    decoder = FrozenDecoder(make_model("gpt2", attn_implementation="eager"), 0)
    with pytest.raises(CoCoMixError, match="sdpa"):
        decoder.loss_gradient(input_ids, scope="next")


def test_bfloat16_stays_close(input_ids):
    decoder = FrozenDecoder(make_model("gpt2"), 1)
    exact, rounded = decoder.loss_gradient(input_ids), decoder.loss_gradient(input_ids, dtype=torch.bfloat16)
    similarity = torch.cosine_similarity(exact.gradient.flatten(), rounded.gradient.float().flatten(), dim=0)
    assert similarity > 0.99


@pytest.mark.parametrize("mixing", ["add", "interleave"])
def test_a_student_is_a_teacher_where_it_has_one_position_a_token(mixing, input_ids):
    backbone = make_model("gpt2").config
    config = CoCoMixConfig(backbone=backbone, insert_layer=2, num_concepts=8, concept_topk=4, mixing=mixing)
    student = CoCoMixForCausalLM(config)
    decoder = FrozenDecoder(student, 1)
    expected = student.lower(input_ids=input_ids).last_hidden_state
    torch.testing.assert_close(decoder.hidden_states(input_ids), expected)
    assert decoder.hook_name == "lower.h.1"
    gradient = decoder.loss_gradient(input_ids)
    assert gradient.loss == pytest.approx(
        float(student(input_ids, labels=input_ids).loss) * input_ids[:, 1:].numel(), rel=1e-4
    )
    if mixing == "add":
        assert FrozenDecoder(student, 2).hook_name == "upper.h.0"
        return
    with pytest.raises(CoCoMixError, match="layer 2"):
        FrozenDecoder(student, 2)
