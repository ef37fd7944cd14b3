"""The released code's numbers, reproduced: logits, losses and gradients to 1e-5."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cocomix.interop import from_reference_state_dict, to_reference_state_dict
from cocomix.model import CoCoMixForCausalLM, ConceptEdit
from cocomix.runtime.errors import CoCoMixError
from tests.golden import golden_files, read_golden
from tests.model.factories import CONCEPTS, D_MODEL, HEADS, TOPK, backbone_config, student, tokens

TOLERANCE = 1e-5


@pytest.mark.parametrize("path", golden_files("model"))
def test_forward_and_gradients_equal_the_released_code(path: Path) -> None:
    meta, golden = read_golden(path)
    weights = {name.removeprefix("weights."): t for name, t in golden.items() if name.startswith("weights.")}
    insert_layer = meta["insert_layer_index"]
    model = from_reference_state_dict(
        weights,
        num_heads=meta["n_head"],
        insert_layer=insert_layer,
        concept_topk=meta["concept_num"],
        concept_loss_weight=meta["lam_concept"],
    )
    output = model(
        input_ids=golden["input_ids"],
        labels=golden["input_ids"],
        concept_labels=golden["concept_labels"],
        output_concept_logits=True,
    )
    for ours, theirs in (
        (output.logits, "logits"),
        (output.concept_logits, "concept_logits"),
        (output.ntp_loss, "ntp_loss"),
        (output.concept_loss, "concept_loss"),
        (output.loss, "total_loss"),
    ):
        torch.testing.assert_close(ours, golden[theirs].view_as(ours), atol=TOLERANCE, rtol=TOLERANCE, msg=theirs)

    output.loss.backward()
    ours_by_name = dict(model.named_parameters())
    compared = 0
    for name, theirs in golden.items():
        if not name.startswith("grad."):
            continue
        key, gradient = _locate(name.removeprefix("grad.transformer."), insert_layer)
        found = ours_by_name[key].grad
        assert found is not None, key
        found = found.T if gradient == "transposed" else found
        torch.testing.assert_close(found, theirs, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda t, n=name: f"{n}: {t}")
        compared += 1
    assert compared == 9


@pytest.mark.parametrize("path", golden_files("model"))
def test_the_imported_model_can_be_steered(path: Path) -> None:
    meta, golden = read_golden(path)
    weights = {name.removeprefix("weights."): t for name, t in golden.items() if name.startswith("weights.")}
    model = from_reference_state_dict(
        weights,
        num_heads=meta["n_head"],
        insert_layer=meta["insert_layer_index"],
        concept_topk=meta["concept_num"],
    )
    ids = golden["input_ids"]
    untouched = model(ids)
    neutral = model(ids, concept_edits=[ConceptEdit(1), ConceptEdit(2, "add", 0.0)])
    assert torch.equal(neutral.logits, untouched.logits)
    concept = int(untouched.concept_ids[0, -1, 0])
    edits = [ConceptEdit(concept, "scale", 10.0, rows=(0,))]
    steered = model(ids, concept_edits=edits).logits
    assert torch.equal(steered[1:], untouched.logits[1:])
    assert not torch.equal(steered[:1], untouched.logits[:1])
    half = ids.shape[1] // 2
    first = model(ids[:, :half], concept_edits=edits, use_cache=True)
    second = model(ids[:, half:], concept_edits=edits, past_key_values=first.past_key_values)
    cached = torch.cat((first.logits, second.logits), dim=1)
    torch.testing.assert_close(cached, steered, atol=TOLERANCE, rtol=TOLERANCE)


def _locate(name: str, insert_layer: int) -> tuple[str, str]:
    mixer = {
        "pre_bias": "predictor.pre_bias",
        "concept_predictor.weight": "predictor.head.weight",
        "concept_predictor.bias": "predictor.head.bias",
        "compress_layer.bias": "mixing.compression.bias",
    }
    if name == "compress_layer.weight":
        return "mixing.compression.weight", "transposed"
    if name in mixer:
        return mixer[name], "same"
    if name.startswith("h."):
        _, index, rest = name.split(".", 2)
        half, local = ("lower", int(index)) if int(index) < insert_layer else ("upper", int(index) - insert_layer)
        return f"{half}.h.{local}.{rest}", "same"
    return ("upper." if name.startswith("ln_f") else "lower.") + name, "same"


# The way back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", golden_files("model"))
def test_the_released_tensors_come_back(path: Path) -> None:
    meta, golden = read_golden(path)
    weights = {name.removeprefix("weights."): t for name, t in golden.items() if name.startswith("weights.")}
    settings = {"insert_layer": meta["insert_layer_index"], "concept_topk": meta["concept_num"]}
    back = to_reference_state_dict(from_reference_state_dict(weights, num_heads=meta["n_head"], **settings))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize("insert_layer", [0, 1, 2])
def test_there_and_back_is_identity(insert_layer: int) -> None:
    model = student("gpt2", insert_layer)
    tensors = to_reference_state_dict(model)
    assert tensors["transformer.compress_layer.weight"].shape == (D_MODEL, CONCEPTS)
    assert {name.split(".")[0] for name in tensors} == {"transformer"}
    twin = read_back(tensors, insert_layer=insert_layer)
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in twin.state_dict().items())
    assert torch.equal(twin(tokens()).logits, model(tokens()).logits)


def read_back(tensors: dict[str, Tensor], **changes: int) -> CoCoMixForCausalLM:
    settings = {"num_heads": HEADS, "insert_layer": 1, "concept_topk": TOPK} | changes
    return from_reference_state_dict(tensors, **settings)


def test_the_names_that_ddp_fsdp_and_compile_give() -> None:
    model = student("gpt2")
    tensors = to_reference_state_dict(model)
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}
    sharded = {name.replace(".attn.", "._fsdp_wrapped_module.attn."): tensor for name, tensor in tensors.items()}
    old = tensors | {"lm_head.weight": torch.zeros(1), "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)}
    for variant in (wrapped, sharded, old):
        assert torch.equal(read_back(variant)(tokens()).logits, model(tokens()).logits)


def test_what_the_released_code_does_not_have() -> None:
    for model, says in (
        (student("gpt2", concept_weights="softmax"), "concept_weights: softmax"),
        (student("llama"), "has only GPT-2 with interleaved concepts, and this is llama"),
        (student("gpt2", 1, "add"), "mixing: add"),
        (student("gpt2", backbone=backbone_config("gpt2", tie_word_embeddings=False)), "tie_word_embeddings"),
    ):
        with pytest.raises(CoCoMixError, match=says):
            to_reference_state_dict(model)


# What is refused -----------------------------------------------------------------------------------------------------


def test_a_stranger_state_dict_is_refused_by_name() -> None:
    with pytest.raises(CoCoMixError, match=r"transformer\.wte\.weight"):
        from_reference_state_dict({"a": torch.zeros(1)}, num_heads=2, insert_layer=0, concept_topk=4)


@pytest.mark.parametrize(
    "name",
    ["wpe.weight", "h.1.ln_1.bias", "h.0.mlp.c_fc.bias", "ln_f.weight", "pre_bias", "compress_layer.weight"],
)
def test_missing_tensors(name: str) -> None:
    tensors = to_reference_state_dict(student("gpt2"))
    del tensors[f"transformer.{name}"]
    with pytest.raises(CoCoMixError, match=f"transformer.{name}, so"):
        read_back(tensors)


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("wte.weight", torch.zeros(4), "should have 2 dimensions"),
        ("compress_layer.weight", torch.zeros(4), "should have 2 dimensions"),
        ("compress_layer.weight", torch.zeros(D_MODEL, CONCEPTS - 1), "the other tensors ask for"),
        ("h.2.attn.c_attn.weight", torch.zeros(D_MODEL, 5), "transformer.h.2.attn.c_attn.weight has 160 entries"),
        ("h.2.attn.c_extra.weight", torch.zeros(1), "has transformer.h.2.attn.c_extra.weight, which"),
    ],
)
def test_tensors_that_do_not_fit(name: str, tensor: Tensor, says: str) -> None:
    with pytest.raises(CoCoMixError, match=says):
        read_back(to_reference_state_dict(student("gpt2")) | {f"transformer.{name}": tensor})


def test_settings_that_do_not_fit() -> None:
    tensors = to_reference_state_dict(student("gpt2"))
    with pytest.raises(CoCoMixError, match=r"5 .*32"):
        read_back(tensors, num_heads=5)
    with pytest.raises(CoCoMixError, match="insert_layer=7"):
        read_back(tensors, insert_layer=7)
    no_blocks = {name: tensor for name, tensor in tensors.items() if ".h." not in name}
    with pytest.raises(CoCoMixError, match=r"has no transformer\.h\.0"):
        read_back(no_blocks)
