"""Sequences of different lengths, labelled in batches, are labelled as alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cocomix.concepts import AttributionLabeller, ConceptTeacher
from cocomix.concepts.lengths import label_sequences, length_batches, pad_right
from cocomix.runtime.errors import CoCoMixError

from .conftest import BACKBONES, VOCAB, make_dictionary, make_model


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 64))
def test_every_sequence_is_in_one_batch_that_is_no_larger_than_asked(lengths, batch_tokens):
    batches = list(length_batches(lengths, batch_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert longest == lengths[batch[0]]
        assert len(batch) * longest <= batch_tokens or len(batch) == 1


def test_padding_is_on_the_right_and_masked():
    tokens, mask = pad_right([torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert pad_right([torch.tensor([5, 6]), torch.tensor([8, 9])])[1] is None


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("gradient", ["sequence", "next"])
def test_batched_sequences_are_labelled_as_alone(backbone, gradient):
    teacher = ConceptTeacher(make_model(backbone), make_dictionary(), 1)
    generator = torch.Generator().manual_seed(5)
    lengths = (7, 1, 12, 3, 12, 2, 9)
    sequences = [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]
    labeller = AttributionLabeller(teacher, gradient=gradient, sign="abs")
    found = label_sequences(labeller, sequences, batch_tokens=24, k=3)
    assert len(found) == len(sequences)
    for sequence, labels in zip(sequences, found, strict=True):
        alone = labeller.label(sequence[None], k=3)
        assert labels.ids.shape == (len(sequence), 3)
        assert torch.equal(labels.ids, alone.ids[0])
        torch.testing.assert_close(labels.scores, alone.scores[0], rtol=1e-3, atol=1e-5)


def test_no_sequence_an_empty_one_and_a_batch_of_them():
    labeller = AttributionLabeller(ConceptTeacher(make_model("gpt2"), make_dictionary(), 1))
    assert label_sequences(labeller, [], k=4) == []
    with pytest.raises(CoCoMixError, match=r"sequence 1 has shape \[0\]; give one-dimensional sequences"):
        label_sequences(labeller, [torch.tensor([3]), torch.tensor([], dtype=torch.int64)], k=4)
    with pytest.raises(CoCoMixError, match=r"sequence 0 has shape \[1, 2\]"):
        label_sequences(labeller, [torch.ones(1, 2, dtype=torch.int64)], k=4)
