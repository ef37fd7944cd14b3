import pytest
import torch

from cocomix.concepts import ConceptDictionary, ConceptTeacher, DictionaryFit, measure_fit, require_fit
from cocomix.runtime.errors import CoCoMixError

from .conftest import D_MODEL, make_dictionary, make_model


def identity_dictionary(normalize):
    """Reconstructs every hidden state: each direction and its opposite is a concept."""
    eye = torch.eye(D_MODEL)
    return ConceptDictionary.from_tensors(
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


def test_padding_does_not_count(input_ids):
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)
    plain = measure_fit(teacher, input_ids[:, :7])
    padded = torch.cat([input_ids[:, :7], torch.zeros(3, 4, dtype=torch.long)], -1)
    mask = torch.cat([torch.ones(3, 7), torch.zeros(3, 4)], -1).long()
    found = measure_fit(teacher, padded, mask)
    assert found.positions == plain.positions
    assert found.fvu == pytest.approx(plain.fvu, rel=1e-4)
    assert found.ce_zero == pytest.approx(plain.ce_zero, rel=1e-4)


def test_a_random_dictionary_is_refused_with_both_numbers_unless_forced(input_ids, caplog):
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(), 1, name="tiny")
    fit = measure_fit(teacher, input_ids)
    assert fit.fvu > 1
    with pytest.raises(CoCoMixError, match=rf"block 1 of the teacher tiny: FVU {fit.fvu:.3f}, cross-entropy recovered"):
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
