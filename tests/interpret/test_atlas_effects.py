import pytest
import torch

from cocomix.interpret.atlas_effects import mean_concept_logits, measure_effect, measure_effects
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError
from tests.evaluation.conftest import CONCEPTS


def blocks(world, count=3):
    return torch.stack([world.data.split("train")[index]["input_ids"] for index in range(count)])


@pytest.mark.parametrize("mixing", ["interleave", "residual", "add"])
def test_effects_equal_a_naive_measurement(world, mixing):
    model, ids = world.student(mixing), blocks(world)
    with torch.no_grad():
        before = model(input_ids=ids).logits.log_softmax(-1).mean((0, 1))
        after = model(input_ids=ids, concept_edits=[ConceptEdit(5, "add", 4.0)]).logits.log_softmax(-1).mean((0, 1))
    change = after - before
    raised, lowered = measure_effect(model, world.tokenizer, ids, 5, 4.0, top=3)
    up, down = change.topk(3), (-change).topk(3)
    assert [token for token, _ in raised] == [world.tokenizer.decode([token]) for token in up.indices.tolist()]
    assert [token for token, _ in lowered] == [world.tokenizer.decode([token]) for token in down.indices.tolist()]
    assert [nats for _, nats in raised] == pytest.approx(up.values.tolist(), abs=1e-5)
    assert [nats for _, nats in lowered] == pytest.approx((-down.values).tolist(), abs=1e-5)
    assert raised[0][1] > 0 > lowered[0][1]


def test_several_concepts_are_turned_up_one_at_a_time(world):
    model, ids = world.student(), blocks(world)
    found = list(measure_effects(model, world.tokenizer, ids, {3: 2.0, 9: 6.0}, top=2))
    assert found == [
        (3, *measure_effect(model, world.tokenizer, ids, 3, 2.0, top=2)),
        (9, *measure_effect(model, world.tokenizer, ids, 9, 6.0, top=2)),
    ]


def test_no_amount_has_no_effect(world):
    assert measure_effect(world.student(), world.tokenizer, blocks(world), 5, 0.0) == ((), ())


def test_mean_concept_logits(world):
    model, ids = world.student(), blocks(world)
    with torch.no_grad():
        logits = model(input_ids=ids, output_concept_logits=True).concept_logits
    assert torch.allclose(mean_concept_logits(model, ids), logits.double().mean((0, 1)), atol=1e-5)


def test_effects_that_cannot_be_measured(world):
    ids = blocks(world)
    with pytest.raises(CoCoMixError, match="has no concepts"):
        measure_effect(world.plain(), world.tokenizer, ids, 0, 1.0)
    with pytest.raises(CoCoMixError, match="mixes none in"):
        measure_effect(world.student("none"), world.tokenizer, ids, 0, 1.0)
    for concept in (-1, CONCEPTS):
        with pytest.raises(CoCoMixError, match=f"concept {concept} does not exist"):
            measure_effect(world.student(), world.tokenizer, ids, concept, 1.0)
    for amount in (float("nan"), float("inf")):
        with pytest.raises(CoCoMixError, match="must be a number"):
            measure_effect(world.student(), world.tokenizer, ids, 0, amount)
