"""`upper_positions: token`: both places of a token in the upper half have its position."""

import pytest
import torch

from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import mix, student, tokens

FAMILIES = ("llama", "gpt_neox", "gemma3_text")


@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_the_upper_half_with_given_positions_and_mask(family: str) -> None:
    model, ids = student(family, upper_positions="token"), tokens()
    hidden = model.lower(input_ids=ids).last_hidden_state
    positions = torch.arange(ids.shape[1]).repeat_interleave(2).unsqueeze(0)
    upper = model.upper(
        inputs_embeds=mix(model, hidden),
        position_ids=positions,
        attention_mask=torch.ones(ids.shape[0], 2 * ids.shape[1]),  # without one they would be read as documents
    )
    expected = model.lm_head(upper.last_hidden_state[:, 1::2])
    found = model(ids).logits
    if model._logit_softcap is not None:
        expected = model._logit_softcap * torch.tanh(expected / model._logit_softcap)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, student(family)(ids).logits, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_padding_and_checkpointing_change_nothing(family: str) -> None:
    model, ids = student(family, upper_positions="token"), tokens()
    whole = model(ids).logits
    first = model(ids[:, :7], use_cache=True)
    rest = model(ids[:, 7:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), whole, rtol=1e-4, atol=1e-4)
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), ids), 1)
    mask = torch.cat((torch.zeros(2, 3, dtype=torch.long), torch.ones_like(ids)), 1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 3:], whole, rtol=1e-4, atol=1e-4)
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(model.train()(ids, use_cache=False).logits, whole, rtol=1e-4, atol=1e-4)


def test_decoders_with_learned_positions_and_forms_that_add_compute_the_same() -> None:
    ids = tokens()
    for family, mixing in (("gpt2", "interleave"), ("llama", "add")):
        own, token = (student(family, mixing=mixing, upper_positions=name)(ids).logits for name in ("own", "token"))
        torch.testing.assert_close(own, token, rtol=1e-5, atol=1e-5)


def test_positions_of_one_document_are_taken() -> None:
    """`generate` gives them, and without a cache no mask beside them."""
    model, ids = student("llama", upper_positions="token"), tokens()
    given = model(ids, position_ids=torch.arange(ids.shape[1])[None], use_cache=False).logits
    torch.testing.assert_close(given, model(ids).logits, rtol=1e-4, atol=1e-5)
    cached, uncached = (model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, uncached)


def test_documents_kept_apart_by_positions_are_refused() -> None:
    ids = tokens()
    positions = torch.arange(ids.shape[1]).remainder(5).expand_as(ids)
    with pytest.raises(CoCoMixError, match="upper_positions"):
        student("llama", upper_positions="token")(ids, position_ids=positions, use_cache=False)
    with pytest.raises(CoCoMixError, match="upper_positions='both'"):
        student("llama", upper_positions="both")
