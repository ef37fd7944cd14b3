"""Cached ≡ uncached: step by step, in every kind of generation, and after every operation on the cache."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from cocomix.model import CoCoMixCache, CoCoMixForCausalLM
from cocomix.model.mixing import MIXINGS as FORMS
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import (
    INSERT_LAYERS,
    LAYERS,
    MAIN_BACKBONES,
    OTHER_BACKBONES,
    WINDOW,
    plain,
    student,
    tokens,
)

STEPS = [3, 1, 1, 4, 1, 1]  # query lengths that add up to 11 and cross the sliding windows


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def in_steps(model: CoCoMixForCausalLM, ids: Tensor, steps: list[int], mask: Tensor | None = None) -> Tensor:
    """Logits of `ids`, fed a few tokens at a time through one cache."""
    cache, start, pieces = None, 0, []
    for length in steps:
        stop = start + length
        output = model(
            ids[:, start:stop],
            attention_mask=None if mask is None else mask[:, :stop],
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        assert cache.get_seq_length() == stop
        pieces.append(output.logits)
        start = stop
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_step_by_step_equals_one_pass(family: str, attn: str) -> None:
    for insert_layer in INSERT_LAYERS:
        for mixing in ("interleave", "residual", "add", "none") if insert_layer == 1 else ("interleave",):
            model = student(family, insert_layer, mixing, attn=attn)
            whole = model(tokens(), use_cache=False)
            assert whole.past_key_values is None
            close(in_steps(model, tokens(), STEPS), whole.logits)


@pytest.mark.parametrize("family", OTHER_BACKBONES)
def test_other_families_step_by_step(family: str) -> None:
    for insert_layer in INSERT_LAYERS:
        model = student(family, insert_layer)
        close(in_steps(model, tokens(), STEPS), model(tokens(), use_cache=False).logits)


@pytest.mark.parametrize("family", [*MAIN_BACKBONES, "gemma2", "mistral"])
def test_step_by_step_with_left_padding_equals_each_row_alone(family: str) -> None:
    for insert_layer in INSERT_LAYERS:
        model = student(family, insert_layer)
        mask = torch.ones(2, 11, dtype=torch.long)
        mask[0, :2] = 0
        batched = in_steps(model, tokens(), STEPS, mask)
        close(batched[0, 2:], model(tokens()[:1, 2:], use_cache=False).logits[0])
        close(batched[1], model(tokens()[1:], use_cache=False).logits[0])


# Generation ----------------------------------------------------------------------------------------------------------

GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "num_return_sequences": 3, "temperature": 0.7, "top_k": 0},
}


def generate(model: CoCoMixForCausalLM, ids: Tensor, **settings: Any) -> Tensor:
    torch.manual_seed(5)
    sequences: Tensor = model.generate(ids, **({"max_new_tokens": 7, "do_sample": False} | settings))
    return sequences


@pytest.mark.parametrize("insert_layer", INSERT_LAYERS)
@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_generation_with_cache_equals_generation_without(family: str, insert_layer: int) -> None:
    model = student(family, insert_layer)
    greedy = None
    for kind, settings in GENERATION.items():
        cached = generate(model, tokens(), **settings)
        assert torch.equal(cached, generate(model, tokens(), use_cache=False, **settings)), kind
        greedy = cached if kind == "greedy" else greedy
    assert torch.equal(greedy, generate(model, tokens(), prefill_chunk_size=3))
    for row in (0, 1):  # prompt-lookup takes one sequence at a time; a repeating prompt makes it find candidates
        prompt = tokens()[row : row + 1, :4].repeat(1, 3)
        looked_up = generate(model, prompt, prompt_lookup_num_tokens=3)
        assert torch.equal(looked_up, generate(model, prompt))


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_a_left_padded_batch_generates_what_each_row_generates_alone(family: str) -> None:
    model = student(family)
    prompts = [tokens(1, 5, seed=1), tokens(1, 9, seed=2)]
    width = max(prompt.shape[1] for prompt in prompts)
    batch = torch.cat([torch.nn.functional.pad(prompt, (width - prompt.shape[1], 0)) for prompt in prompts])
    mask = torch.cat(
        [torch.nn.functional.pad(torch.ones_like(prompt), (width - prompt.shape[1], 0)) for prompt in prompts]
    )
    for settings in ({}, {"num_beams": 3}, {"prefill_chunk_size": 4}):
        together = generate(model, batch, attention_mask=mask, **settings)
        for row, prompt in enumerate(prompts):
            alone = generate(model, prompt, **settings)
            assert torch.equal(together[row, width:], alone[0, prompt.shape[1] :]), settings


@pytest.mark.parametrize("mixing", FORMS)
def test_assisted_generation_equals_its_own(mixing: str) -> None:
    """Of every form, helped by another student and helping a plain decoder, whose guesses are often wrong."""
    model = student("llama", 0, mixing)
    for helped, helper in ((model, student("llama", 1, "add", seed=3)), (plain("llama"), model)):
        assert torch.equal(generate(helped, tokens(1), assistant_model=helper), generate(helped, tokens(1)))


def test_generation_goes_on_from_a_returned_cache() -> None:
    model = student("gemma3_text")
    first = model.generate(tokens(1), max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    rest = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False)
    assert torch.equal(rest, generate(model, tokens(1), max_new_tokens=8))


@pytest.mark.parametrize("kind", ["static", "offloaded", "quantized", "offloaded_static"])
def test_other_cache_kinds_are_refused_in_a_sentence(kind: str) -> None:
    with pytest.raises(CoCoMixError, match=f"cache_implementation='{kind}' does not work with CoCoMix.*leave it out"):
        student("llama").generate(tokens(), max_new_tokens=2, cache_implementation=kind)


# The cache object ----------------------------------------------------------------------------------------------------


def filled(model: CoCoMixForCausalLM, ids: Tensor) -> CoCoMixCache:
    cache = model(ids).past_key_values
    assert isinstance(cache, CoCoMixCache)
    return cache


@pytest.mark.parametrize("insert_layer", INSERT_LAYERS)
def test_lengths_are_in_tokens(insert_layer: int) -> None:
    cache = filled(student("llama", insert_layer), tokens())
    assert len(cache) == LAYERS
    assert [cache.get_seq_length(i) for i in range(LAYERS)] == [11] * LAYERS
    assert [layer.keys.shape[-2] for layer in cache.layers] == [11] * insert_layer + [22] * (LAYERS - insert_layer)
    assert cache.get_mask_sizes(2, 0) == (13, 0)
    assert not cache.is_compileable


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_repeat_select_and_reorder_reach_both_halves(family: str) -> None:
    for insert_layer in INSERT_LAYERS:
        model = student(family, insert_layer)
        ids, last = tokens(2, 6), tokens(2, 1, seed=8)
        expected = model(torch.cat([ids, last], dim=1), use_cache=False).logits[:, -1]

        repeated = filled(model, ids)
        repeated.batch_repeat_interleave(2)
        logits = model(last.repeat_interleave(2, 0), past_key_values=repeated).logits[:, -1]
        close(logits, expected.repeat_interleave(2, 0))

        selected = filled(model, ids)
        selected.batch_select_indices(torch.tensor([1]))
        close(model(last[1:], past_key_values=selected).logits[:, -1], expected[1:])

        reordered = filled(model, ids)
        reordered.reorder_cache(torch.tensor([1, 0]))
        close(model(last.flip(0), past_key_values=reordered).logits[:, -1], expected.flip(0))


@pytest.mark.parametrize("mixing", ["interleave", "add"])
@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_cropping_forgets_whole_tokens(family: str, mixing: str) -> None:
    for insert_layer in INSERT_LAYERS:
        model = student(family, insert_layer, mixing)
        cache = model._own_cache(None)
        cache.activate_past_recording()
        model(tokens(2, 9), past_key_values=cache)
        cache.crop(-4)
        assert cache.get_seq_length() == 5
        ids = torch.cat([tokens(2, 9)[:, :5], tokens(2, 3, seed=8)], dim=1)
        close(model(ids[:, 5:], past_key_values=cache).logits, model(ids, use_cache=False).logits[:, 5:])


@torch.no_grad()
def test_a_copy_is_independent() -> None:
    model = student("gemma3_text")
    cache = filled(model, tokens(2, 6))
    branch = copy.deepcopy(cache)
    model(tokens(2, 3, seed=8), past_key_values=cache)
    assert (cache.get_seq_length(), branch.get_seq_length()) == (9, 6)
    assert branch.layers == [layer for each in (branch.lower, *branch.upper) for layer in each.layers]
    ids = torch.cat([tokens(2, 6), tokens(2, 1, seed=7)], dim=1)
    close(model(ids[:, 6:], past_key_values=branch).logits, model(ids, use_cache=False).logits[:, 6:])


def test_reset_starts_over() -> None:
    model = student("gemma3_text")
    cache = filled(model, tokens(2, 9))
    cache.reset()
    assert cache.get_seq_length() == 0
    close(model(tokens(2, 6), past_key_values=cache).logits, model(tokens(2, 6), use_cache=False).logits)


def test_sliding_layers_keep_a_window_of_mixed_positions() -> None:
    cache = filled(student("gemma3_text", 1), tokens(2, 11))
    assert [layer.keys.shape[-2] for layer in cache.layers] == [WINDOW - 1, 22, 2 * WINDOW - 1]


def test_a_cache_filled_by_another_model_is_refused() -> None:
    model = student("llama", 1)
    stranger = DynamicCache()
    stranger.update(torch.zeros(2, 2, 3, 8), torch.zeros(2, 2, 3, 8), 0)
    with pytest.raises(CoCoMixError, match="filled DynamicCache"):
        model(tokens(), past_key_values=stranger)
    with pytest.raises(CoCoMixError, match="filled DynamicCache"):
        model.generate(tokens(), past_key_values=stranger, max_new_tokens=2)
    for other in (student("llama", 2), student("llama", 1, "add")):
        with pytest.raises(CoCoMixError, match="another split"):
            model(tokens(2, 1), past_key_values=filled(other, tokens()))


def test_an_empty_stock_cache_is_replaced() -> None:
    model = student("llama")
    output = model(tokens(), past_key_values=DynamicCache(), use_cache=True)
    assert isinstance(output.past_key_values, CoCoMixCache)
    assert torch.equal(generate(model, tokens(), past_key_values=DynamicCache()), generate(model, tokens()))


def test_training_and_loss_computation_make_no_cache() -> None:
    model = student("llama")
    assert model(tokens(), labels=tokens()).past_key_values is None
    assert model.train()(tokens()).past_key_values is None
