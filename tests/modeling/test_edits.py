"""Concept edits: what they do to logits, what they refuse, and that they steer generation with and without cache."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.errors import CoCoMixError
from cocomix.modeling import ConceptEdit
from cocomix.modeling.edits import apply_edits
from tests.modeling.factories import CONCEPTS, MAIN_BACKBONES, TOPK, student, tokens

NEUTRAL = [ConceptEdit(3), ConceptEdit(7, "scale", 1.0), ConceptEdit(0, "add", 0.0)]


@pytest.mark.parametrize("mixing", ["interleave", "residual", "add"])
@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_neutral_edits_change_nothing_bit_for_bit(family: str, mixing: str) -> None:
    model = student(family, 1, mixing)
    untouched, edited = model(tokens()), model(tokens(), concept_edits=NEUTRAL)
    assert torch.equal(untouched.logits, edited.logits)
    assert torch.equal(untouched.concept_ids, edited.concept_ids)
    assert torch.equal(untouched.concept_values, edited.concept_values)


def test_each_operation() -> None:
    z = torch.tensor([[[1.0, -2.0, 3.0, 0.5]]])
    for edit, expected in (
        (ConceptEdit(1, "scale", -3.0), [1.0, 6.0, 3.0, 0.5]),
        (ConceptEdit(1, "add", 1.5), [1.0, -0.5, 3.0, 0.5]),
        (ConceptEdit(1, "set", 9.0), [1.0, 9.0, 3.0, 0.5]),
        (ConceptEdit(1, "ban"), [1.0, -math.inf, 3.0, 0.5]),
    ):
        assert apply_edits(z, [edit]).flatten().tolist() == expected
    assert z.flatten().tolist() == [1.0, -2.0, 3.0, 0.5]


def test_edits_apply_in_order_and_bans_last() -> None:
    z = torch.tensor([[[1.0, 2.0]]])
    scale, add = ConceptEdit(0, "scale", 2.0), ConceptEdit(0, "add", 5.0)
    assert apply_edits(z, [scale, add])[0, 0, 0] == 7.0
    assert apply_edits(z, [add, scale])[0, 0, 0] == 12.0
    for after in (ConceptEdit(0, "scale", 0.0), ConceptEdit(0, "scale", -1.0), ConceptEdit(0, "set", 4.0)):
        assert apply_edits(z, [ConceptEdit(0, "ban"), after])[0, 0, 0] == -math.inf


def test_a_banned_concept_is_never_mixed_in() -> None:
    model = student("gpt2")
    favourite = int(model(tokens()).concept_ids.flatten().bincount().argmax())
    output = model(tokens(), concept_edits=[ConceptEdit(favourite, "ban")], output_concept_logits=True)
    assert not (output.concept_ids == favourite).any()
    assert (output.concept_logits[..., favourite] == -math.inf).all()
    assert output.logits.isfinite().all()
    assert (output.logits - model(tokens()).logits).abs().max() > 1e-2


def test_banning_more_concepts_than_can_be_replaced_mixes_in_zeros() -> None:
    model = student("gpt2", num_concepts=TOPK)
    output = model(tokens(), concept_edits=[ConceptEdit(i, "ban") for i in range(TOPK)])
    assert not output.concept_values.any()
    assert output.logits.isfinite().all()


def test_setting_a_concept_high_puts_it_first() -> None:
    output = student("llama")(tokens(), concept_edits=[ConceptEdit(11, "set", 50.0)])
    assert (output.concept_ids[..., 0] == 11).all()
    assert (output.concept_values[..., 0] == 50.0).all()


def test_edits_leave_the_concept_loss_alone() -> None:
    model = student("gpt2")
    labels = torch.full((2, 11, 1), 5)
    edited = model(tokens(), concept_labels=labels, concept_edits=[ConceptEdit(5, "add", 10.0)])
    torch.testing.assert_close(edited.concept_loss, model(tokens(), concept_labels=labels).concept_loss)


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_steered_generation_is_the_same_with_and_without_cache(family: str) -> None:
    model = student(family)
    edits = [ConceptEdit(4, "scale", -6.0), ConceptEdit(9, "add", 8.0), ConceptEdit(2, "ban")]
    settings = {"max_new_tokens": 6, "do_sample": False}
    steered = model.generate(tokens(), concept_edits=edits, **settings)
    assert torch.equal(steered, model.generate(tokens(), concept_edits=edits, use_cache=False, **settings))
    assert not torch.equal(steered, model.generate(tokens(), **settings))


@pytest.mark.parametrize("concept", [-1, CONCEPTS])
def test_concepts_that_do_not_exist_are_refused(concept: int) -> None:
    with pytest.raises(CoCoMixError, match=f"concept {concept} does not exist: this model has concepts 0 to 47"):
        student("gpt2")(tokens(), concept_edits=[ConceptEdit(concept)])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
def test_values_that_are_no_usable_numbers_are_refused(value: float) -> None:
    with pytest.raises(CoCoMixError, match="of concept 0 must be a number"):
        ConceptEdit(0, "add", value)


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(CoCoMixError, match="'boost' is not one of scale, add, set, ban"):
        ConceptEdit(0, "boost")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.builds(
            ConceptEdit, st.integers(0, 5), st.sampled_from(["scale", "add", "set", "ban"]), st.floats(-1e30, 1e30)
        ),
        max_size=6,
    )
)
def test_edited_logits_are_never_nan_nor_plus_infinity_beyond_overflow(edits: list[ConceptEdit]) -> None:
    edited = apply_edits(torch.randn(2, 3, 6, dtype=torch.float64), edits)
    assert not edited.isnan().any()
    assert not (edited == math.inf).any()
    banned = {edit.concept for edit in edits if edit.operation == "ban"}
    assert {int(i) for i in (edited == -math.inf).any(0).any(0).nonzero()} == banned
