import numpy as np
import pytest
import torch

from cocomix.interpret import edit_effects, measure_effects, steering_candidates
from cocomix.interpret.effects import turning_amounts
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError
from tests.evaluation.conftest import CONCEPTS, TOPK


@pytest.fixture
def ids(world):
    return torch.stack([world.data.split("train")[index]["input_ids"] for index in range(3)])


def test_an_effect_is_the_change_of_log_probability(world, ids):
    model = world.student()
    found = list(measure_effects(model, world.tokenizer, ids, {3: 2.0, 7: 5.0}, top=4))
    assert [effect.concept for effect in found] == [3, 7]
    with torch.no_grad():
        before = model(ids).logits.log_softmax(-1)
        after = model(ids, concept_edits=[ConceptEdit(7, "add", 5.0)]).logits.log_softmax(-1)
    change, effect = (after - before).double().mean((0, 1)), found[1]
    assert [nats for _, nats in effect.raised] == pytest.approx(change.topk(4).values.tolist(), rel=1e-4)
    assert effect.lowered[0][0] == world.tokenizer.decode([int(change.argmin())])
    assert effect.divergence == pytest.approx(float((after.exp() * (after - before)).sum(-1).mean()), rel=1e-4)


def test_amounts_reach_from_the_mean_to_where_a_concept_truly_is():
    logits = np.array([[-3.0, -5.0]] * 19 + [[-1.0, -5.0]])
    amounts = turning_amounts(np.array([[0, 1]] * 20), logits, np.array([-9.0, -4.0, -7.0]))
    assert amounts[0] == pytest.approx(-3.0 + 9.0)  # 95% of its logits are not above -3, and all are negative
    assert amounts[1] == pytest.approx(0.1)  # never below
    assert amounts[2] == pytest.approx(np.quantile(logits, 0.95) + 7.0)  # never predicted: as the others


def test_candidates_are_ranked_by_their_measured_effect(world, ids):
    model = world.student()
    found = steering_candidates(model, world.tokenizer, ids, pool=5, top=3)
    assert 1 <= len(found) <= 5
    divergences = [one.divergence for one in found]
    assert divergences == sorted(divergences, reverse=True)
    with torch.no_grad():
        predicted = model(ids).concept_ids
    for one in found:
        assert 0 < float((predicted == one.concept).any(-1).float().mean()) <= 0.5
        assert one.amount > 0
    assert TOPK < CONCEPTS / 2, "otherwise every concept is mixed in more than half of the time"


@pytest.mark.parametrize("operation", ["scale", "ban"])
def test_an_edit_without_effect_is_told_with_what_would_act(world, ids, operation):
    model, text = world.student(), ids[:1]
    with torch.no_grad():
        output = model(text, output_concept_logits=True)
    never = sorted(set(range(CONCEPTS)) - set(output.concept_ids.flatten().tolist()))
    concept = never[0]
    (found,) = edit_effects(model, text, [ConceptEdit(concept, operation, 1.0001)])
    assert (found.predicted, found.acts) == (0.0, False)
    assert f"{concept}+" in str(found)
    assert "0.00%" in str(found)
    (added,) = edit_effects(model, text, [ConceptEdit(concept, "add", found.would_act)])
    assert added.acts
    with torch.no_grad():
        mixed = model(text, concept_edits=[ConceptEdit(concept, "add", found.would_act)]).concept_ids
    assert float((mixed == concept).any(-1).float().mean()) >= 0.5


def test_edits_after_the_text_and_neutral_ones_do_nothing(world, ids):
    model = world.student()
    for edit in (ConceptEdit(3, "add", 4.0, start=10_000), ConceptEdit(3, "scale", 1.0)):
        (found,) = edit_effects(model, ids[:1], [edit])
        assert not found.acts
        assert "concept 3" in str(found)


def test_refusals(world, ids):
    for ask in (
        lambda model: steering_candidates(model, world.tokenizer, ids),
        lambda model: list(measure_effects(model, world.tokenizer, ids, {1: 1.0})),
        lambda model: edit_effects(model, ids[:1], []),
    ):
        with pytest.raises(CoCoMixError, match="has no concepts"):
            ask(world.plain())
        with pytest.raises(CoCoMixError, match="mixes none in"):
            ask(world.student("none"))
    with pytest.raises(CoCoMixError, match=str(CONCEPTS)):
        list(measure_effects(world.student(), world.tokenizer, ids, {CONCEPTS: 1.0}))
