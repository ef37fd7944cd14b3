"""Concept edits: what they do to logits, what they refuse, and that they steer generation with and without cache."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.model import ConceptEdit
from cocomix.model.edits import PlacedEdit, apply_edits, edits_in_force, place_edits
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import CONCEPTS, MAIN_BACKBONES, TOPK, student, tokens

NEUTRAL = [ConceptEdit(3), ConceptEdit(7, "scale", 1.0), ConceptEdit(0, "add", 0.0)]


def apply(logits: torch.Tensor, edits: list[ConceptEdit]) -> torch.Tensor:
    """Edits everywhere, the naive way: on [batch, seq, n_concepts]."""
    batch, seq, _ = logits.shape
    placed = place_edits(edits, torch.arange(seq).unsqueeze(0), torch.arange(batch))
    flat = [PlacedEdit(edit, where.flatten()) for edit, where in placed]
    return apply_edits(logits.flatten(0, 1), flat).view_as(logits)


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
        assert apply(z, [edit]).flatten().tolist() == expected
    assert z.flatten().tolist() == [1.0, -2.0, 3.0, 0.5]


def test_edits_apply_in_order_and_bans_last() -> None:
    z = torch.tensor([[[1.0, 2.0]]])
    scale, add = ConceptEdit(0, "scale", 2.0), ConceptEdit(0, "add", 5.0)
    assert apply(z, [scale, add])[0, 0, 0] == 7.0
    assert apply(z, [add, scale])[0, 0, 0] == 12.0
    for after in (ConceptEdit(0, "scale", 0.0), ConceptEdit(0, "scale", -1.0), ConceptEdit(0, "set", 4.0)):
        assert apply(z, [ConceptEdit(0, "ban"), after])[0, 0, 0] == -math.inf


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


EDITS = [
    ConceptEdit(4, "scale", -6.0, start=3),
    ConceptEdit(9, "set", 8.0, rows=(1,)),
    ConceptEdit(2, "ban", start=5, rows=(0, 2)),
]


def own(edits: list[ConceptEdit], row: int) -> list[ConceptEdit]:
    """The edits of one row, for a batch of that row alone."""
    return [replace(edit, rows=None) for edit in edits if edit.rows is None or row in edit.rows]


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_edits_of_rows_and_positions_equal_row_by_row_steering(family: str) -> None:
    model, ids = student(family), tokens(3)
    together = model(ids, concept_edits=EDITS)
    untouched = model(ids)
    for row in range(3):
        alone = model(ids[row : row + 1], concept_edits=own(EDITS, row))
        torch.testing.assert_close(together.logits[row : row + 1], alone.logits, atol=1e-5, rtol=1e-5)
    assert ((together.concept_ids == 9) & (together.concept_values == 8.0)).any(-1)[1].all()
    assert torch.equal(together.logits[::2, :3], untouched.logits[::2, :3])  # before the first edit of these rows
    assert not torch.equal(together.logits[::2, 3:], untouched.logits[::2, 3:])


@pytest.mark.parametrize("edit", [ConceptEdit(9, "set", 8.0, start=11), ConceptEdit(9, "set", 8.0, rows=(1,))])
def test_what_an_edit_does_not_name_stays_bit_for_bit(edit: ConceptEdit) -> None:
    model, ids = student("gpt2"), tokens()
    edited, untouched = model(ids, concept_edits=[edit]), model(ids)
    assert torch.equal(edited.logits[:1], untouched.logits[:1])
    assert torch.equal(edited.logits[1], untouched.logits[1]) == (edit.rows is None)


def test_concept_logits_are_those_after_edits() -> None:
    model, ids = student("gpt2"), tokens(3)
    plain = model(ids, output_concept_logits=True).concept_logits
    edited = model(ids, output_concept_logits=True, concept_edits=EDITS).concept_logits
    expected = plain.clone()
    expected[:, 3:, 4] *= -6.0
    expected[1, :, 9] = 8.0
    expected[::2, 5:, 2] = -math.inf
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_start_counts_tokens_without_padding_and_with_earlier_ones_cached(family: str) -> None:
    model, ids = student(family), tokens(3)
    expected = model(ids, concept_edits=EDITS).logits
    padded = torch.cat((torch.zeros(3, 4, dtype=torch.long), ids), dim=1)
    mask = torch.cat((torch.zeros(3, 4, dtype=torch.long), torch.ones_like(ids)), dim=1)
    found = model(padded, attention_mask=mask, concept_edits=EDITS).logits[:, 4:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    first = model(ids[:, :4], concept_edits=EDITS, use_cache=True)
    second = model(ids[:, 4:], concept_edits=EDITS, past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat((first.logits, second.logits), dim=1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
@pytest.mark.parametrize("use_cache", [True, False])
def test_beams_follow_the_row_of_their_prompt(settings: dict[str, int], use_cache: bool) -> None:
    model, ids = student("gpt2"), tokens(3)
    settings = {"max_new_tokens": 6, "do_sample": False, "use_cache": use_cache, **settings}
    together = model.generate(ids, concept_edits=EDITS, **settings)
    alone = [model.generate(ids[row : row + 1], concept_edits=own(EDITS, row), **settings) for row in range(3)]
    assert torch.equal(together, torch.cat(alone))
    with edits_in_force(model, EDITS):
        assert torch.equal(model.generate(ids, **settings), together)


def test_samples_follow_the_row_of_their_prompt() -> None:
    model, ids = student("gpt2"), tokens()
    edits = [ConceptEdit(9, "set", 60.0, rows=(1,))]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        steered = model.generate(ids, concept_edits=edits, do_sample=True, num_return_sequences=4, max_new_tokens=5)
        torch.manual_seed(0)
        plain = model.generate(ids, do_sample=True, num_return_sequences=4, max_new_tokens=5)
    assert torch.equal(steered[:4], plain[:4])
    assert not torch.equal(steered[4:], plain[4:])


def test_edits_in_force_nest_and_end() -> None:
    model, other, ids = student("gpt2"), student("gpt2"), tokens()
    outer, inner = ConceptEdit(9, "set", 8.0), ConceptEdit(9, "scale", 0.5)
    untouched = model(ids).logits
    with edits_in_force(model, [outer]):
        with edits_in_force(model, [inner]):
            assert torch.equal(other(ids).logits, untouched)
            both = model(ids).logits
        with edits_in_force(model, [ConceptEdit(CONCEPTS)]), pytest.raises(CoCoMixError, match="does not exist"):
            model(ids)
        assert torch.equal(model(ids, concept_edits=[inner]).logits, both)
    assert torch.equal(both, model(ids, concept_edits=[outer, inner]).logits)
    assert torch.equal(model(ids).logits, untouched)


def test_threads_do_not_see_each_others_edits() -> None:
    model, ids = student("gpt2"), tokens()
    edits = [[ConceptEdit(concept, "set", 8.0)] for concept in (3, 9)]
    expected = [model(ids, concept_edits=edit).logits for edit in edits]
    barrier = Barrier(2)

    def steer(index: int) -> list[torch.Tensor]:
        with edits_in_force(model, edits[index]):
            barrier.wait()
            return [model(ids).logits for _ in range(3)]

    with ThreadPoolExecutor(2) as pool:
        for found, logits in zip(pool.map(steer, range(2)), expected, strict=True):
            assert all(torch.equal(each, logits) for each in found)


def test_rows_and_starts_that_do_not_exist_are_refused() -> None:
    with pytest.raises(CoCoMixError, match=r"row 2.* 0 to 1"):
        student("gpt2")(tokens(), concept_edits=[ConceptEdit(0, "set", 1.0, rows=(0, 2))])
    with pytest.raises(CoCoMixError, match="starts at token -1"):
        ConceptEdit(0, start=-1)
    for rows in ((), (-1,)):
        with pytest.raises(CoCoMixError, match="name rows from 0"):
            ConceptEdit(0, rows=rows)


def test_a_refused_edit_leaves_the_cache_as_it_was() -> None:
    model, ids = student("gpt2"), tokens()
    cache = model(ids[:, :6], use_cache=True).past_key_values
    with pytest.raises(CoCoMixError, match="does not exist"):
        model(ids[:, 6:], past_key_values=cache, concept_edits=[ConceptEdit(CONCEPTS)])
    resumed = model(ids[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(resumed, model(ids).logits[:, 6:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("concept", [-1, CONCEPTS])
def test_concepts_that_do_not_exist_are_refused(concept: int) -> None:
    with pytest.raises(CoCoMixError, match=f"concept {concept}.* 0 to 47"):
        student("gpt2")(tokens(), concept_edits=[ConceptEdit(concept)])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
def test_values_that_are_no_usable_numbers_are_refused(value: float) -> None:
    with pytest.raises(CoCoMixError, match="concept 0"):
        ConceptEdit(0, "add", value)


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(CoCoMixError, match=r"'boost'.*scale, add, set, ban"):
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
    edited = apply(torch.randn(2, 3, 6, dtype=torch.float64), edits)
    assert not edited.isnan().any()
    assert not (edited == math.inf).any()
    banned = {edit.concept for edit in edits if edit.operation == "ban"}
    assert {int(i) for i in (edited == -math.inf).any(0).any(0).nonzero()} == banned
