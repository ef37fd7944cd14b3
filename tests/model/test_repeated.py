"""Forms that run the upper half more than once: against passes written by hand, and the invariants of every model."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cocomix.model import CoCoMixForCausalLM, account
from cocomix.model.accounting import build_model, matched_config
from cocomix.model.backbone import backbone_of
from cocomix.model.memory import activation_bytes
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import (
    D_MODEL,
    LAYERS,
    VOCAB,
    WINDOW,
    backbone_config,
    plain,
    student,
    student_config,
    tokens,
)
from tests.model.test_cache import GENERATION, STEPS, close, filled, generate, in_steps

FAMILIES = ("gpt2", "llama", "gemma3_text", "gpt_neox")
FORMS = [("loop", 0), ("loop", 1), ("ponder", 0)]
BLOCK = 24 * D_MODEL**2  # FLOPs of one of GPT-2, forward
HEAD = 2 * VOCAB * D_MODEL


def unnormed(model: CoCoMixForCausalLM, hidden: Tensor) -> Tensor:
    """The upper half without its final norm."""
    twin = copy.deepcopy(model.upper)
    setattr(twin, backbone_of(model.config.backbone).final_norm, nn.Identity())
    found: Tensor = twin(inputs_embeds=hidden).last_hidden_state
    return found


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loop_runs_the_upper_half_on_its_own_output(family: str, repeats: int) -> None:
    for insert_layer in (0, 1):
        model = student(family, insert_layer, "loop", repeats=repeats)
        hidden = model.lower(tokens()).last_hidden_state
        for _ in range(repeats):
            hidden = unnormed(model, hidden)
        expected = model.upper(inputs_embeds=hidden).last_hidden_state
        torch.testing.assert_close(model(tokens()).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


def test_a_loop_has_no_parameters_and_costs_its_passes() -> None:
    for insert_layer in (0, 1):
        decoder, ours = account(plain("gpt2")), account(student("gpt2", insert_layer, "loop", repeats=3))
        assert ours.total_parameters == ours.active_parameters == decoder.total_parameters
        assert ours.forward_flops_per_token == (insert_layer + 4 * (LAYERS - insert_layer)) * BLOCK + HEAD


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_thoughts_are_jacobi_iterations_at_the_tokens_places(family: str, repeats: int) -> None:
    for positions in ("own", "token"):
        model, ids = student(family, 0, "ponder", repeats=repeats, upper_positions=positions), tokens()
        scale = (2.5 if family == "gemma3_text" else 2.5 * D_MODEL) ** 0.5
        embedded = scale * model.lower(ids).last_hidden_state
        places = torch.arange(22) if positions == "own" else torch.arange(11).repeat_interleave(2)

        def interleaved(thoughts: Tensor) -> Tensor:
            both = torch.stack((embedded, thoughts), 2).flatten(1, 2)  # noqa: B023 - called where it is defined
            inputs = {"position_ids": places[None], "attention_mask": torch.ones(2, 22)}  # noqa: B023
            found: Tensor = model.upper(inputs_embeds=both, **inputs).last_hidden_state  # noqa: B023
            return found

        thoughts = model.upper(inputs_embeds=embedded).last_hidden_state
        for _ in range(repeats):
            thoughts = interleaved(thoughts)[:, 0::2]
        expected = interleaved(thoughts)[:, 1::2] @ model.lm_head.weight.T
        cap = model.config.final_logit_softcapping
        expected = expected if cap is None else cap * torch.tanh(expected / cap)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_thoughts_have_no_parameters_and_cost_their_passes() -> None:
    decoder, ours = account(plain("gpt2")), account(student("gpt2", 0, "ponder", repeats=3))
    assert ours.total_parameters == ours.active_parameters == decoder.total_parameters
    assert ours.forward_flops_per_token == (3 + 2 * 3) * LAYERS * BLOCK + HEAD


@pytest.mark.parametrize(("mixing", "insert_layer"), FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_causality_documents_padding_and_checkpointing(family: str, mixing: str, insert_layer: int) -> None:
    model, ids = student(family, insert_layer, mixing), tokens()
    whole = model(ids).logits
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 50
    close(model(changed).logits[:, :6], whole[:, :6])
    assert not torch.allclose(model(changed).logits[:, 6:], whole[:, 6:], atol=1e-2)
    packed = model(ids, position_ids=torch.cat((torch.arange(5), torch.arange(6))).expand_as(ids), use_cache=False)
    close(packed.logits[:, :5], whole[:, :5])
    close(packed.logits[:, 5:], model(ids[:, 5:]).logits)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    close(in_steps(model, ids, STEPS, mask)[0, 2:], model(ids[:1, 2:], use_cache=False).logits[0])

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    expected = model.train() and gradients()
    assert expected.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.any() for gradient in expected.values())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
@pytest.mark.parametrize(("mixing", "insert_layer"), FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached_and_the_cache_can_be_changed(family: str, mixing: str, insert_layer: int) -> None:
    model, ids = student(family, insert_layer, mixing), tokens(2, 9)
    close(in_steps(model, tokens(), STEPS), model(tokens(), use_cache=False).logits)
    for settings in GENERATION.values():
        cached = generate(model, ids, **settings)
        assert torch.equal(cached, generate(model, ids, use_cache=False, **settings))
    cache = model._own_cache(None)
    cache.activate_past_recording()
    model(ids, past_key_values=cache)
    assert len(cache) == insert_layer + len(model.config.passes) * (LAYERS - insert_layer)
    cache.crop(-4)
    assert cache.get_seq_length() == 5
    other = torch.cat((ids[:, :5], tokens(2, 3, seed=8)), 1)
    close(model(other[:, 5:], past_key_values=cache).logits, model(other, use_cache=False).logits[:, 5:])
    reordered = filled(model, ids)
    reordered.reorder_cache(torch.tensor([1, 0]))
    last = tokens(2, 1, seed=8)
    found = model(last.flip(0), past_key_values=reordered).logits[:, -1]
    close(found, model(torch.cat((ids, last), 1), use_cache=False).logits[:, -1].flip(0))
    with pytest.raises(CoCoMixError, match="another split"):
        model(last, past_key_values=filled(student(family, insert_layer, mixing, repeats=2), ids))


@pytest.mark.parametrize(("mixing", "insert_layer"), FORMS)
def test_costs_with_attention_and_memory_count_every_pass(mixing: str, insert_layer: int) -> None:
    config = student_config("mistral", insert_layer, mixing)
    model, none = build_model(config), student("mistral", insert_layer, "none")
    seen = (WINDOW * 11 - WINDOW * (WINDOW - 1) / 2) / 11  # positions that a query sees, at the mean
    below = 4 * 32 * seen * insert_layer
    above = 0.0
    for width in config.passes:
        window = WINDOW * config.positions_per_token  # the upper half has one configuration for all passes
        reach, places = min(window, width * 11), width * 11
        above += width * 4 * 32 * (reach * places - reach * (reach - 1) / 2) / places * (LAYERS - insert_layer)
    added = account(model, 11).forward_flops_per_token - account(model).forward_flops_per_token
    assert added == pytest.approx(below + above)
    kept = {
        each: activation_bytes(given, batch_size=2, block_size=32, bf16=False)
        for each, given in (("ours", config), ("none", none.config))
    }
    part = activation_bytes(backbone_config("mistral"), batch_size=2, block_size=32, bf16=False) / LAYERS
    assert kept["ours"] > kept["none"] + 0.9 * part * (sum(config.passes) - 1) * (LAYERS - insert_layer)


@pytest.mark.parametrize(("mixing", "insert_layer"), FORMS)
def test_the_baseline_is_the_plain_decoder_of_its_flops(mixing: str, insert_layer: int) -> None:
    config = student_config("gpt2", insert_layer, mixing)
    baseline = matched_config(config, "flops", 32)
    assert baseline.model_type == "gpt2"
    found, target = (account(build_model(each), 32).forward_flops_per_token for each in (baseline, config))
    assert found == pytest.approx(target, rel=0.15)  # widths of so small a model are four heads apart
    assert baseline.hidden_size > D_MODEL


@pytest.mark.parametrize("family", FAMILIES)
def test_it_saves_copies_and_refuses(family: str, tmp_path: Any) -> None:
    model = student(family, 0, "loop", repeats=2)
    logits = model(tokens()).logits
    model.save_pretrained(tmp_path)
    assert torch.equal(CoCoMixForCausalLM.from_pretrained(tmp_path).eval()(tokens()).logits, logits)
    assert torch.equal(copy.deepcopy(model)(tokens()).logits, logits)
    with pytest.raises(CoCoMixError, match="repeats=0"):
        student_config(family, mixing="loop", repeats=0)
    with pytest.raises(CoCoMixError, match="insert_layer=1"):
        student(family, 1, "ponder")
    with pytest.raises(CoCoMixError, match="no concepts"):
        model(tokens(), output_concept_logits=True)
