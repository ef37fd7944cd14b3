"""Does a dictionary fit, does a number format: what is measured, and when it is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.concepts import (
    Agreement,
    AttributionLabeller,
    ConceptDictionary,
    ConceptLabels,
    ConceptTeacher,
    DictionaryFit,
    RandomLabeller,
    label_agreement,
    measure_agreement,
    measure_fit,
    require_agreement,
    require_fit,
)
from cocomix.runtime.errors import CoCoMixError

from .conftest import CONCEPTS, D_MODEL, VOCAB, make_dictionary, make_model


def identity_dictionary(normalize):
    """Reconstructs every hidden state: each direction and its opposite is a concept."""
    eye = torch.eye(D_MODEL)
    return ConceptDictionary(
        torch.cat([eye, -eye], dim=1),
        torch.zeros(2 * D_MODEL),
        torch.cat([eye, -eye]),
        torch.zeros(D_MODEL),
        normalize=normalize,
    )


@pytest.mark.parametrize("normalize", ["layer_norm", "none"])
def test_a_perfect_dictionary_explains_and_recovers_everything(normalize, input_ids):
    teacher = ConceptTeacher(make_model("gpt2"), identity_dictionary(normalize), 1)
    fit = measure_fit(teacher, input_ids, batch_size=2)
    assert fit.fvu == pytest.approx(0, abs=1e-6)
    assert fit.ce_dictionary == pytest.approx(fit.ce_clean, abs=1e-4)
    assert fit.positions == input_ids.numel()
    targets = input_ids[:, 1:].numel()
    assert fit.ce_clean == pytest.approx(float(teacher.decoder.loss(input_ids)) / targets, rel=1e-5)


def test_fvu_is_the_naive_formula_and_batching_changes_nothing(input_ids):
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(normalize="none"), 1)
    hidden = teacher.decoder.hidden_states(input_ids).flatten(0, 1)
    outputs = teacher.dictionary.reconstruct(hidden)
    expected = (hidden - outputs).pow(2).sum() / (hidden - hidden.mean(0)).pow(2).sum()
    whole, parts = measure_fit(teacher, input_ids), measure_fit(teacher, input_ids, batch_size=1)
    assert whole.fvu == pytest.approx(float(expected), rel=1e-4)
    assert parts.fvu == pytest.approx(whole.fvu, rel=1e-5)
    assert parts.ce_dictionary == pytest.approx(whole.ce_dictionary, rel=1e-5)


def test_a_random_dictionary_is_refused_with_both_numbers_unless_forced(input_ids, caplog):
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(), 1, name="tiny")
    fit = measure_fit(teacher, input_ids)
    assert fit.fvu > 1
    with pytest.raises(CoCoMixError, match=rf"block 1 .*tiny: FVU {fit.fvu:.3f} .*cross-entropy recovered"):
        require_fit(fit, teacher)
    require_fit(fit, teacher, force=True)
    assert f"FVU {fit.fvu:.3f}" in caplog.messages[0]


@pytest.mark.parametrize(
    ("numbers", "accepted"),
    [
        ({"fvu": 0.4, "ce_clean": 2.0, "ce_dictionary": 3.0, "ce_zero": 5.0}, True),
        ({"fvu": 0.6, "ce_clean": 2.0, "ce_dictionary": 3.0, "ce_zero": 5.0}, False),
        ({"fvu": 0.4, "ce_clean": 2.0, "ce_dictionary": 4.0, "ce_zero": 5.0}, False),
        ({"fvu": float("nan"), "ce_clean": 2.0, "ce_dictionary": 3.0, "ce_zero": 5.0}, False),
        (
            {"fvu": 0.4, "ce_clean": 5.0, "ce_dictionary": 5.0, "ce_zero": 4.9},
            True,
        ),  # an untrained teacher: nothing to recover
    ],
)
def test_the_limits(numbers, accepted):
    fit = DictionaryFit(**numbers, positions=100)
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)
    if accepted:
        require_fit(fit, teacher)
    else:
        with pytest.raises(CoCoMixError, match="does not describe"):
            require_fit(fit, teacher)


# --- number formats ---------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher():
    return ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)


@pytest.fixture
def tokens():
    return torch.randint(1, VOCAB, (6, 20), generator=torch.Generator().manual_seed(3))


class Fixed:
    """A labeller that gives the labels it is told."""

    def __init__(self, ids, scores=None):
        self.ids, self.scores = torch.tensor(ids)[None], None if scores is None else torch.tensor(scores)[None]

    def label(self, input_ids, attention_mask=None, *, k):
        return ConceptLabels(self.ids[..., :k], None if self.scores is None else self.scores[..., :k])


def test_agreement_counts_equal_sets_and_the_score_that_is_kept(tokens):
    # The first position swaps its labels, the second takes the third best, the third one that float32 does not rank.
    exact = Fixed([[1, 2, 3], [1, 2, 3], [1, 2, 3], [-100] * 3], [[4.0, 2.0, 1.0]] * 3 + [[0.0] * 3])
    narrow = Fixed([[2, 1], [1, 3], [1, 9], [-100] * 2])
    found = measure_agreement(narrow, exact, tokens[:1, :4], 2)
    assert found.equal_sets == pytest.approx(1 / 3)
    assert found.score_kept == pytest.approx((6 + 5 + 4) / 18)
    without = Fixed(exact.ids[0].tolist())
    assert measure_agreement(narrow, without, tokens[:1, :4], 2).score_kept == pytest.approx((2 + 2 + 1) / 6)


def test_float16_rounds_less_than_bfloat16_and_float32_not_at_all(teacher, tokens):
    found = [
        measure_agreement(AttributionLabeller(teacher, dtype=dtype), AttributionLabeller(teacher), tokens, 4)
        for dtype in ("bfloat16", "float16", "float32")
    ]
    assert found == sorted(found)
    assert 0.5 < found[0].equal_sets < found[0].score_kept < 1.0
    assert found[-1] == pytest.approx((1.0, 1.0))


def test_labels_drawn_at_random_are_compared_with_the_same_draw(teacher, tokens):
    assert measure_agreement(RandomLabeller(teacher), RandomLabeller(teacher), tokens, 2) == pytest.approx((1.0, 1.0))


def test_a_format_that_chooses_other_concepts_is_refused_or_forced(caplog):
    require_agreement(Agreement(0.9, 0.99), "bfloat16")
    with pytest.raises(CoCoMixError, match=r"bfloat16 .*90\.0%"):
        require_agreement(Agreement(0.8, 0.9), "bfloat16")
    require_agreement(Agreement(0.8, 0.9), "bfloat16", force=True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_values_beyond_float16_are_refused_in_a_sentence(tokens):
    model = make_model("gpt2")
    with torch.no_grad():
        model.transformer.h[2].mlp.c_fc.weight *= 1e6
    teacher = ConceptTeacher(model, make_dictionary(), 1, name="tiny")
    with pytest.raises(CoCoMixError, match=r"tiny .*dtype"):
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
