"""`concept_rank`: W_pred as a product U V. It computes what the product as one matrix does, for fewer FLOPs."""

from pathlib import Path

import pytest
import torch

from cocomix.interop.reference import from_reference_state_dict, to_reference_state_dict
from cocomix.model import CoCoMixForCausalLM, ConceptEdit, account
from tests.model.factories import CONCEPTS, D_MODEL, HEADS, TOPK, concepts, student, tokens

RANK = 5


def as_one_matrix(model: CoCoMixForCausalLM) -> CoCoMixForCausalLM:
    whole = student(model.config.backbone.model_type, 1, model.config.mixing)
    weights = model.state_dict()
    weights["predictor.head.weight"] = weights["predictor.head.weight"] @ weights.pop("predictor.reduction.weight")
    whole.load_state_dict(weights)
    return whole


@pytest.mark.parametrize("mixing", ["interleave", "add", "none"])
def test_it_equals_the_product_as_one_matrix(mixing: str) -> None:
    model = student("llama", 1, mixing, concept_rank=RANK)
    whole, edits = as_one_matrix(model), [ConceptEdit(3, "set", 9.0, start=4)]
    given = {"labels": tokens(), "concept_labels": concepts(), "output_concept_logits": True, "concept_edits": edits}
    found, expected = model(tokens(), **given), whole(tokens(), **given)
    for name in ("loss", "concept_loss", "concept_logits", "logits"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    found.loss.backward()
    assert model.predictor.reduction.weight.grad.any()


def test_its_parameters_and_flops_by_hand() -> None:
    full, low = (account(student("gpt2", 1, "add", concept_rank=rank)) for rank in (None, RANK))
    saved = D_MODEL * CONCEPTS - RANK * (D_MODEL + CONCEPTS)
    assert full.total_parameters - low.total_parameters == saved
    assert full.active_parameters - low.active_parameters == saved
    assert full.forward_flops_per_token - low.forward_flops_per_token == 2 * saved


def test_its_logits_begin_as_large_as_those_of_one_matrix() -> None:
    def size(rank: int | None) -> float:
        torch.manual_seed(0)
        config = student("llama", concept_rank=rank, num_concepts=4000).config
        model = CoCoMixForCausalLM(config)
        return float(model(tokens(8, 20), output_concept_logits=True).concept_logits.detach().std())

    assert size(8) == pytest.approx(size(None), rel=0.35)


def test_it_is_saved_and_becomes_a_released_model(tmp_path: Path) -> None:
    model = student("gpt2", concept_rank=RANK)
    model.save_pretrained(tmp_path)
    loaded = CoCoMixForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    released = to_reference_state_dict(model)
    back = from_reference_state_dict(released, num_heads=HEADS, insert_layer=1, concept_topk=TOPK)
    torch.testing.assert_close(back(tokens()).logits, model(tokens()).logits, rtol=1e-4, atol=1e-4)
