"""nnsight on a student: concepts read, replaced and edited within a trace. It needs no code of ours."""

import pytest
import torch
from torch import Tensor

from cocomix import ConceptEdit
from tests.model.factories import student, tokens

nnsight = pytest.importorskip("nnsight", reason="nnsight is not installed; run `make install`")


@pytest.mark.parametrize(("family", "mixing"), [("llama", "interleave"), ("gpt2", "add")])
def test_concepts_in_a_trace(family: str, mixing: str) -> None:
    student_, ids = student(family, mixing=mixing), tokens()
    model = nnsight.NNsight(student_)
    with torch.no_grad():
        expected = student_(ids)

        with model.trace(ids):
            concepts = model.predictor.output.concepts
            chosen, values = concepts.ids.save(), concepts.values.save()
            logits = model.output.logits.save()
        assert torch.equal(chosen, expected.concept_ids)
        assert torch.equal(values, expected.concept_values)
        assert torch.equal(logits, expected.logits)

        with model.trace(ids):
            prediction = model.predictor.output
            others = prediction.concepts._replace(
                ids=torch.full_like(prediction.concepts.ids, 7), values=torch.full_like(prediction.concepts.values, 3.0)
            )
            model.predictor.output = prediction._replace(concepts=others)
            replaced = model.output.logits.save()

        def intervention(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return torch.full_like(ids, 7), torch.full_like(values, 3.0)

        assert torch.equal(replaced, student_(ids, concept_intervention=intervention).logits)
        assert (replaced - logits).abs().max() > 0.1

        edits = [ConceptEdit(7, "set", 20.0)]
        with model.trace(ids, concept_edits=edits):
            steered = model.output.logits.save()
        assert torch.equal(steered, student_(ids, concept_edits=edits).logits)
