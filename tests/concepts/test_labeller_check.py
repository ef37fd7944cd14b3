"""How far a narrow number format changes labels, and when it is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.concepts import (
    AttributionLabeller,
    ConceptTeacher,
    label_agreement,
    measure_agreement,
    require_agreement,
)
from cocomix.runtime.errors import CoCoMixError

from .conftest import CONCEPTS, VOCAB, make_dictionary, make_model


@pytest.fixture
def teacher():
    return ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)


@pytest.fixture
def tokens():
    return torch.randint(1, VOCAB, (6, 20), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_it_is_the_share_of_equal_sets(teacher, tokens, dtype):
    labeller = AttributionLabeller(teacher, dtype=dtype)
    found = measure_agreement(labeller, labeller.with_dtype("float32"), tokens, 4, batch_size=4)
    narrow = torch.cat([teacher.label(rows, dtype=dtype).ids for rows in torch.split(tokens, 4)])
    exact = torch.cat([teacher.label(rows).ids for rows in torch.split(tokens, 4)])
    assert found == label_agreement(narrow, exact)
    equal = [
        set(a.tolist()) == set(b.tolist())
        for a, b in zip(narrow.flatten(0, 1), exact.flatten(0, 1), strict=True)
        if (a != -100).any() or (b != -100).any()
    ]
    assert found == pytest.approx(sum(equal) / len(equal))
    assert found > 0.5


def test_float16_rounds_less_than_bfloat16_and_float32_not_at_all(teacher, tokens):
    shares = [
        measure_agreement(AttributionLabeller(teacher, dtype=dtype), AttributionLabeller(teacher), tokens, 4)
        for dtype in ("bfloat16", "float16", "float32")
    ]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] == 1.0


def test_a_format_that_changes_labels_is_refused_or_forced(caplog):
    require_agreement(0.99, "bfloat16")
    with pytest.raises(CoCoMixError, match=r"bfloat16 .*90\.0%"):
        require_agreement(0.9, "bfloat16")
    require_agreement(0.9, "bfloat16", force=True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "90.0%" in caplog.text


def test_values_beyond_float16_are_refused_in_a_sentence(tokens):
    model = make_model("gpt2")
    with torch.no_grad():
        model.transformer.h[2].mlp.c_fc.weight *= 1e6
    teacher = ConceptTeacher(model, make_dictionary(), 1, name="tiny")
    with pytest.raises(CoCoMixError, match="of the teacher tiny is not finite; try another dtype"):
        teacher.label(tokens, dtype="float16")


@given(seed=st.integers(0, 1000), k=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_agreement_ignores_order_and_counts_changed_sets(seed, k):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.stack([torch.randperm(CONCEPTS, generator=generator)[:k] for _ in range(6)])[None]
    assert label_agreement(labels, labels.flip(-1)) == 1.0
    changed = labels.clone()
    changed[0, 0, 0] = CONCEPTS
    changed[0, 1] = -100
    assert label_agreement(labels, changed) == pytest.approx(4 / 6)
    nothing = torch.full_like(labels, -100)
    assert label_agreement(nothing, nothing) == 1.0
