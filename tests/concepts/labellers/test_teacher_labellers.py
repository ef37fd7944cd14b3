"""`attribution` and `activation`, and what all labellers with a teacher have in common."""

import pytest
import torch

from cocomix.concepts import (
    ActivationLabeller,
    AttributionLabeller,
    ConceptTeacher,
    RandomLabeller,
)

from ..conftest import CONCEPTS, D_MODEL, make_dictionary, make_model, refused_by

LABELLERS = (AttributionLabeller, ActivationLabeller, RandomLabeller)


@pytest.fixture
def teacher():
    return ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)


@pytest.mark.parametrize("options", [{}, {"activation": "pre", "gradient": "next", "sign": "abs"}])
def test_attribution_is_the_teachers_with_summed_scores(teacher, input_ids, options):
    found = AttributionLabeller(teacher, **options).label(input_ids, k=3)
    expected = teacher.label(input_ids, k=3, reduction="sum", **options)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.scores, expected.scores)


def test_activation_takes_the_most_active_concepts(teacher, input_ids):
    labels = ActivationLabeller(teacher).label(input_ids, k=4)
    latents = teacher.dictionary.latents(teacher.decoder.hidden_states(input_ids))
    best = latents.topk(4)
    assert torch.equal(labels.ids[:, :-1], best.indices[:, :-1].masked_fill(best.values[:, :-1] <= 0, -100))
    assert (labels.ids[:, -1] == -100).all()


@pytest.mark.parametrize("labeller", LABELLERS)
def test_every_kind_labels_the_same_positions(labeller, input_ids):
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(), 1, bos_token_id=int(input_ids[0, 0]))
    mask = torch.ones_like(input_ids)
    mask[1, :3] = 0
    options = {"sign": "abs"} if labeller is AttributionLabeller else {}
    labelled = (labeller(teacher, **options).label(input_ids, mask, k=2).ids != -100).any(-1)
    assert torch.equal(labelled, teacher.labelled_positions(input_ids, mask))
    assert not labelled[0, 0]
    assert not labelled[1, :3].any()


@pytest.mark.parametrize("labeller", LABELLERS)
def test_a_fingerprint_names_what_determines_the_labels(labeller, teacher):
    first = labeller(teacher).fingerprint()
    assert {"kind", "algorithm", "weights", "dictionary", "layer", "dtype"} <= set(first)
    assert all(isinstance(value, str) for value in first.values())
    narrow = labeller(teacher).with_dtype("bfloat16").fingerprint()
    assert refused_by(first, narrow) == ("dtype",)
    other = labeller(ConceptTeacher(teacher.decoder.model, make_dictionary("relu"), 1)).fingerprint()
    assert refused_by(first, other) == ("dictionary",)
    higher = labeller(ConceptTeacher(teacher.decoder.model, teacher.dictionary, 2)).fingerprint()
    assert refused_by(first, higher) == ("layer",)


def test_a_raised_algorithm_version_is_another_fingerprint(teacher, monkeypatch):
    first = AttributionLabeller(teacher).fingerprint()
    monkeypatch.setattr(AttributionLabeller, "algorithm", "2")
    assert refused_by(first, AttributionLabeller(teacher).fingerprint()) == ("algorithm",)


def test_flops(teacher):
    below, whole = (teacher.decoder.flops_per_token(16, up_to=end) for end in ("layer", "head"))
    products = 2.0 * CONCEPTS * D_MODEL
    assert AttributionLabeller(teacher).flops_per_token(16) == whole + (whole - below) + products
    assert AttributionLabeller(teacher, activation="pre").flops_per_token(16) == 2 * whole - below + 2 * products
    assert ActivationLabeller(teacher).flops_per_token(16) == below + products
    assert RandomLabeller(teacher).flops_per_token(16) == below + products
