import pytest
import torch

from cocomix.evaluation.reliance import zero
from cocomix.explorer.read_text import read_text
from cocomix.runtime.errors import CoCoMixError

TEXT = "list of the items and a string"


def test_a_reading_is_the_models_own(subject):
    reading = read_text(subject, TEXT)
    ids = subject.encode(TEXT)
    with torch.no_grad():
        output = subject.model(input_ids=ids)
        without = subject.model(input_ids=ids, concept_intervention=zero).logits[0].softmax(-1)
    shares = output.logits[0].softmax(-1)
    assert "".join(token.token for token in reading.tokens) == TEXT
    for place, token in enumerate(reading.tokens):
        assert [one.id for one in token.concepts] == output.concept_ids[0, place].tolist()
        assert [one.logit for one in token.concepts] == pytest.approx(
            output.concept_values[0, place].tolist(), abs=1e-5
        )
        assert token.strength == token.concepts[0].logit
        assert token.mixed_in
        divergence = (shares[place] * (shares[place] / without[place]).log()).sum()
        assert token.divergence == pytest.approx(float(divergence), abs=1e-5)
        best = shares[place].topk(8).indices.tolist()
        assert [shift.token for shift in token.next_tokens] == [subject.tokenizer.decode([one]) for one in best]
        assert [shift.probability for shift in token.next_tokens] == pytest.approx(
            shares[place, best].tolist(), abs=1e-6
        )
        assert [shift.without for shift in token.next_tokens] == pytest.approx(without[place, best].tolist(), abs=1e-6)
    assert {one.id for token in reading.tokens for one in token.concepts} == reading.names.keys()


def test_coloured_by_a_concept(subject):
    ids = subject.encode(TEXT)
    with torch.no_grad():
        output = subject.model(input_ids=ids, output_concept_logits=True)
    for concept in (0, int(output.concept_ids[0, 2, 1])):
        reading = read_text(subject, TEXT, concept)
        strengths = output.concept_logits[0, :, concept].tolist()
        assert [token.strength for token in reading.tokens] == pytest.approx(strengths, abs=1e-5)
        assert [token.mixed_in for token in reading.tokens] == (output.concept_ids[0] == concept).any(-1).tolist()
        assert concept in reading.names


def test_too_little_and_too_much_text(subject):
    for text, says in ((" \n", "text is empty"), ("list " * 100, "context is 48"), ("x" * 8001, "8,000 at most")):
        with pytest.raises(CoCoMixError, match=says):
            read_text(subject, text)
