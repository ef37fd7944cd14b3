"""`mixing: next_concept` (ConceptLM): its formula by hand, causality within chunks, documents, cache, costs."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from cocomix.model import CoCoMixForCausalLM, account
from cocomix.model.accounting import matched_config
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import D_MODEL, HEADS, LAYERS, SUPPORTED_BACKBONES, concepts, plain, student, tokens
from tests.model.test_cache import STEPS, in_steps

CODES, SIZE = 5, 4
FAMILIES = ("gpt2", "llama", "gemma3_text")


def made(family: str = "gpt2", insert_layer: int = 1, **settings: Any) -> CoCoMixForCausalLM:
    return student(family, insert_layer, "next_concept", **{"chunk_codes": CODES, "chunk_tokens": SIZE, **settings})


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("weights", ["logits", "softmax"])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_the_upper_half_reads_what_the_formula_says(size: int, weights: str) -> None:
    """Chunk by chunk and segment by segment; 11 tokens end within a chunk, and the first chunk is told of none."""
    model, seq = made(chunk_tokens=size, concept_weights=weights), 11
    mixing, hidden = model.mixing, model.lower(tokens()).last_hidden_state
    pooled = torch.stack([hidden[:, j * size : (j + 1) * size].mean(1) for j in range(seq // size)], 1)
    logits = mixing.heads(mixing.blocks(inputs_embeds=pooled).last_hidden_state).view(2, -1, HEADS, CODES)
    logits = logits.softmax(-1) if weights == "softmax" else logits
    parts = []
    for segment in range(HEADS):
        codes = torch.stack([mixing.basis[segment] @ code for code in mixing.frozen[segment]])
        parts.append(logits[:, :, segment] @ codes)
    predicted = torch.cat((torch.zeros(2, 1, D_MODEL), torch.cat(parts, -1)), 1)  # ĉ_0 = 0, ĉ_1, …
    feedback = torch.stack([predicted[:, (p + 1) // size] for p in range(seq)], 1)
    expected = F.rms_norm(hidden, (D_MODEL,), mixing.state_norm.weight, 1e-5)
    expected = expected + F.rms_norm(feedback, (D_MODEL,), mixing.concept_norm.weight, 1e-5)
    close(mixing(hidden, None), expected)
    close(model(tokens()).logits, model.lm_head(model.upper(inputs_embeds=expected).last_hidden_state))
    shown = model(tokens(), labels=tokens()).shown
    for j in range(1, seq // size):
        end = (j + 1) * size - 1
        close(shown["ncp"][:, end], (predicted[:, j] - pooled[:, j]).square().mean(-1))
    of_all = (pooled.unflatten(-1, (HEADS, 1, -1)) - mixing.codes()).square()  # [batch, chunks, segments, codes, …]
    nearest = of_all.sum(-1).min(-1)
    ends = torch.arange(seq // size) * size + size - 1
    assert torch.equal(shown["codes"][:, ends], nearest.indices)
    close(shown["codebook"][:, ends], nearest.values.sum(-1) / D_MODEL)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_later_token_changes_a_logit(family: str) -> None:
    """Wherever in a chunk p is; and the token at p itself does change its own."""
    model, ids = made(family), tokens(1, 14)
    whole = model(ids).logits
    for p in range(ids.shape[1] - 1):
        changed = ids.clone()
        changed[:, p + 1 :] = (changed[:, p + 1 :] + 1) % 50
        found = model(changed).logits
        close(found[:, : p + 1], whole[:, : p + 1])
        assert not torch.allclose(found[:, p + 1], whole[:, p + 1], atol=1e-3)


def test_the_feedback_matters_and_learns() -> None:
    model = made().train()
    output = model(tokens(), labels=tokens())
    assert output.concept_ids is output.concept_loss is None
    output.loss.backward()
    assert all(weight.grad.any() for name, weight in model.mixing.named_parameters() if "k_proj.bias" not in name)
    model.zero_grad()
    model(tokens(), labels=tokens()).shown["codebook"].sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()] == [
        "mixing.basis"
    ]
    model.zero_grad()
    model(tokens(), labels=tokens()).shown["ncp"][:, 7].sum().backward()
    embedding = model.get_input_embeddings().weight.grad
    seen = {int(token) for token in tokens()[:, :4].flatten()}
    assert {place for place in range(len(embedding)) if embedding[place].any()} == seen  # the target has no gradient


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_of_a_block_and_padding_are_as_alone(family: str) -> None:
    """Two documents with chunks that would cross the border, a third shorter than a chunk; padding on either side."""
    model, ids = made(family), tokens(2, 16)
    parts = ((0, 6), (6, 9), (9, 16))
    positions = torch.cat([torch.arange(stop - start) for start, stop in parts]).expand_as(ids)
    packed = model(ids, position_ids=positions, use_cache=False).logits
    for start, stop in parts:
        close(packed[:, start:stop], model(ids[:, start:stop]).logits)
    alone = model(ids[:, :9], labels=ids[:, :9])
    for left in (0, 3):
        mask = F.pad(torch.ones(2, 9, dtype=torch.long), (left, 3 - left))
        padded = F.pad(ids[:, :9], (left, 3 - left), value=7)
        labels = padded.masked_fill(mask == 0, -100)
        found = model(padded, attention_mask=mask, labels=labels)
        close(found.logits[:, left : left + 9], alone.logits)
        close(found.loss, alone.loss)


@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
def test_cached_equals_uncached(family: str) -> None:
    model = made(family)
    close(in_steps(model, tokens(), STEPS), model(tokens(), use_cache=False).logits)


def test_generation_with_cache_padding_and_beams_equals_that_without() -> None:
    model = made("llama")
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[0, :3] = 0
    for settings in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        found, expected = (
            model.generate(
                tokens(), attention_mask=mask, max_new_tokens=9, do_sample=False, use_cache=cached, **settings
            )
            for cached in (True, False)
        )
        assert torch.equal(found, expected), settings
    cache = model(tokens(), use_cache=True).past_key_values
    cache.crop(-4)
    again = model(tokens()[:, 7:], past_key_values=cache).logits
    close(again, model(tokens(), use_cache=False).logits[:, 7:])
    with pytest.raises(CoCoMixError, match="another split"):
        model(tokens(), past_key_values=student("llama", 1, "add")(tokens(), use_cache=True).past_key_values)


def test_gradient_checkpointing_and_copies_change_nothing(tmp_path: Path) -> None:
    model = made("llama").train()

    def gradients(model: CoCoMixForCausalLM) -> dict[str, Tensor]:
        model.zero_grad()
        model(tokens(), labels=tokens()).loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    expected = gradients(model)
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for name, gradient in gradients(twin).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    model.eval().save_pretrained(tmp_path)
    loaded, loading = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded.mixing.frozen, model.mixing.frozen)
    assert torch.equal(loaded.eval()(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize(("size", "blocks"), [(4, 1), (2, 3)])
def test_costs_by_hand(size: int, blocks: int) -> None:
    """GPT-2: 12d² weights a block and 13d of biases and norms; once a chunk. The frozen codes are no parameters."""
    d, ours, decoder = D_MODEL, account(made(chunk_tokens=size, chunk_blocks=blocks)), account(plain("gpt2"))
    parameters = blocks * (12 * d * d + 13 * d) + 2 * d  # and the norm after the blocks
    parameters += (d + 1) * HEADS * CODES + d * d // HEADS + 2 * d  # heads, A, norms
    assert ours.total_parameters - decoder.total_parameters == parameters
    assert ours.active_parameters == ours.total_parameters
    flops = (blocks * 24 * d * d + 2 * d * HEADS * CODES + 2 * d * CODES) / size
    assert ours.forward_flops_per_token - decoder.forward_flops_per_token == flops
    with_attention, plainly = (
        account(model, 16) for model in (made(chunk_tokens=size, chunk_blocks=blocks), plain("gpt2"))
    )
    mean_visible = (16 // size + 1) / 2
    gap = with_attention.forward_flops_per_token - plainly.forward_flops_per_token
    assert gap == pytest.approx(flops + blocks * 4 * d * mean_visible / size)


def test_the_baseline_of_its_flops_is_the_plain_decoder() -> None:
    config = matched_config(made(chunk_blocks=8, chunk_tokens=1).config, "flops")
    assert (config.model_type, config.num_hidden_layers) == ("gpt2", LAYERS)
    assert config.hidden_size > D_MODEL


def test_what_it_cannot_do_is_refused() -> None:
    for settings, said in (
        ({"prediction": "hidden", "teacher_hidden_size": 8}, "next_concept"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"chunk_blocks": 0}, "chunk_blocks"),
    ):
        with pytest.raises(CoCoMixError, match=said):
            made(**settings)
    with pytest.raises(CoCoMixError, match="concept_labels"):
        made()(tokens(), labels=tokens(), concept_labels=concepts())
    with pytest.raises(CoCoMixError, match="heads"):
        made("qwen3", backbone=plain("qwen3", hidden_size=30).config)
