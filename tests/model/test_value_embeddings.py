"""`mixing: values` and `token_values`: what is looked up adds to the values of the upper half's attention."""

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.model import CoCoMixForCausalLM, account
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import (
    CONCEPTS,
    D_MODEL,
    LAYERS,
    TOPK,
    VOCAB,
    concepts,
    plain,
    split_student,
    student,
    tokens,
)

FAMILIES = {"gpt2": D_MODEL, "llama": 2 * 8, "gemma3_text": 2 * 8, "phi3": 2 * 8}  # width of the values


def made(family: str, insert_layer: int = 1, mixing: str = "values", **settings: Any) -> CoCoMixForCausalLM:
    return student(family, insert_layer, mixing, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_what_the_formula_says(family: str) -> None:
    """Of the first upper block, which reads h: its projection by hand, and the tables in dense form."""
    model, d_v, seen = made(family), FAMILIES[family], []
    name = {"gpt2": "c_attn", "phi3": "qkv_proj"}.get(family, "v_proj")
    layer = next(module for path, module in model.upper.named_modules() if path.endswith(name))
    layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    output = model(tokens(), output_concept_logits=True)
    (entering, found), table = seen[0], model.mixing.compression.weight[:, :d_v]
    kept = output.concept_logits.masked_fill(output.concept_logits < output.concept_values[..., -1:], float("-inf"))
    added = model.mixing.gains[0] * (kept.softmax(-1) @ table + model.mixing.compression.bias[:d_v])
    weight: Tensor = layer.weight if name != "c_attn" else layer.weight.T
    own = F.linear(entering, weight, getattr(layer, "bias", None))
    torch.testing.assert_close(found[..., -d_v:], own[..., -d_v:] + added, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[..., :-d_v], own[..., :-d_v])


@pytest.mark.parametrize(("insert_layer", "places"), [(0, [0, 2]), (1, [1])])
@pytest.mark.parametrize("family", FAMILIES)
def test_token_values_are_those_of_the_table_behind_a_gate(family: str, insert_layer: int, places: list[int]) -> None:
    """In every second block, the last one among them."""
    model, d_v, seen = made(family, insert_layer, "token_values"), FAMILIES[family], []
    name = {"gpt2": "c_attn", "phi3": "qkv_proj"}.get(family, "v_proj")
    for _, layer in [found for found in model.upper.named_modules() if found[0].endswith(name)]:
        layer.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
    model(tokens())
    for block, (layer, entering, found) in enumerate(seen):
        weight: Tensor = layer.weight if name != "c_attn" else layer.weight.T
        expected = F.linear(entering, weight, getattr(layer, "bias", None))
        if block in places:
            place, gate = places.index(block), model.mixing.gates[places.index(block)]
            strength = 3 * (entering[..., :12] @ gate.weight.T).sigmoid()
            rows = model.mixing.table.weight[tokens(), place * d_v : (place + 1) * d_v]
            expected[..., -d_v:] += strength.repeat_interleave(d_v // gate.out_features, -1) * rows
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mixing", ["values", "token_values"])
@pytest.mark.parametrize("family", FAMILIES)
def test_causality_documents_cache_and_checkpointing(family: str, mixing: str) -> None:
    model, ids = made(family, mixing=mixing), tokens()
    whole = model(ids).logits
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 50
    torch.testing.assert_close(model(changed).logits[:, :6], whole[:, :6], rtol=1e-4, atol=1e-4)
    first = model(ids[:, :7], use_cache=True)
    rest = model(ids[:, 7:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), whole, rtol=1e-4, atol=1e-4)
    packed = model(ids, position_ids=torch.cat((torch.arange(5), torch.arange(6))).expand_as(ids), use_cache=False)
    torch.testing.assert_close(packed.logits[:, 5:], model(ids[:, 5:]).logits, rtol=1e-4, atol=1e-4)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        given = {"concept_labels": concepts()} if mixing == "values" else {}
        model(ids, labels=ids, **given).loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    expected = model.train() and gradients()
    assert all(expected[name].any() for name in expected if name.startswith(("mixing.", "predictor.")))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("mixing", "settings"), [("values", {}), ("token_values", {}), ("plain", {"bigram_rows": 64})])
def test_nothing_of_a_step_is_kept_once_it_was_gone_back_through(
    mixing: str, settings: dict[str, int], checkpointed: bool
) -> None:
    """What was added stayed until the next forward pass, and with it all that it was computed from."""
    model = made("llama", mixing=mixing, **settings).train()
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss, holder = model(tokens(), labels=tokens()).loss, model.bigram or model.mixing
    added = weakref.ref(holder._added[0])
    loss.backward()
    assert added() is None


def test_with_zero_tables_it_is_the_plain_decoder() -> None:
    whole = plain("llama")
    twin, weights = made("llama", compression_init="zero"), split_student(whole, 1).state_dict()
    twin.load_state_dict(weights, strict=False)
    with torch.no_grad():
        twin.mixing.compression.weight.zero_()
        twin.mixing.compression.bias.zero_()
    torch.testing.assert_close(twin(tokens()).logits, whole(tokens()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("insert_layer", [0, 1])
def test_costs_by_hand(insert_layer: int) -> None:
    wide = (LAYERS - insert_layer) * FAMILIES["llama"]
    ours, none = (account(student("llama", insert_layer, name)) for name in ("values", "none"))
    assert ours.total_parameters - none.total_parameters == CONCEPTS * wide + wide + (LAYERS - insert_layer)
    assert ours.active_parameters - none.active_parameters == TOPK * wide + wide + (LAYERS - insert_layer)
    assert ours.forward_flops_per_token - none.forward_flops_per_token == 2 * TOPK * wide


@pytest.mark.parametrize(("insert_layer", "blocks"), [(0, 2), (1, 1)])
def test_costs_of_token_values_by_hand(insert_layer: int, blocks: int) -> None:
    heads, wide = 2, blocks * FAMILIES["llama"]
    ours, decoder = account(made("llama", insert_layer, "token_values")), account(plain("llama"))
    assert ours.total_parameters - decoder.total_parameters == VOCAB * wide + blocks * heads * 12
    assert ours.active_parameters - decoder.active_parameters == wide + blocks * heads * 12
    assert ours.forward_flops_per_token - decoder.forward_flops_per_token == 2 * blocks * heads * 12


def test_concepts_can_be_replaced_and_the_model_copied() -> None:
    model = made("llama")
    model(tokens(), labels=tokens()).loss.backward()
    twin = copy.deepcopy(model)
    logits = model(tokens()).logits
    with torch.no_grad():
        twin.mixing.gains.mul_(2)
    assert not torch.allclose(twin(tokens()).logits, logits, atol=1e-3)
    assert torch.equal(model(tokens()).logits, logits)
    other = model(tokens(), concept_intervention=lambda ids, values: ((ids + 1) % CONCEPTS, values)).logits
    assert not torch.allclose(other, logits, atol=1e-3)
    generated = model.generate(tokens(), max_new_tokens=3, do_sample=False)
    assert torch.equal(generated, model.generate(tokens(), max_new_tokens=3, do_sample=False, use_cache=False))


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(CoCoMixError, match="gpt_neox"):
        made("gpt_neox")
    model = made("llama", 0, "token_values")
    with pytest.raises(CoCoMixError, match="input_ids"):
        model(inputs_embeds=model.get_input_embeddings()(tokens()).repeat(1, 2, 1))
    with pytest.raises(CoCoMixError, match="hidden"):
        made("llama", prediction="hidden", teacher_hidden_size=8)
