import gradio as gr
import pytest
import torch

from cocomix.evaluation.reliance import zero
from cocomix.explorer.text_view import read_text, text_view
from cocomix.interpret import visible

TEXT = "list of the items and a string"


def test_a_reading_is_the_models_own(subject):
    reading = read_text(subject, TEXT)
    ids = subject.encode(TEXT)
    with torch.no_grad():
        output = subject.model(input_ids=ids)
        without = subject.model(input_ids=ids, concept_intervention=zero).logits[0].softmax(-1)
    shares = output.logits[0].softmax(-1)
    assert "".join(reading.tokens) == TEXT
    share = (output.concept_ids == reading.concept).any(-1).float().mean()
    assert 0 < share <= 0.5
    for place, concepts in enumerate(reading.concepts):
        assert [one for one, _ in concepts] == output.concept_ids[0, place].tolist()
        assert [one for _, one in concepts] == pytest.approx(output.concept_values[0, place].tolist(), abs=1e-5)
        divergence = (shares[place] * (shares[place] / without[place]).log()).sum()
        assert float(reading.divergence[place]) == pytest.approx(float(divergence), abs=1e-5)
        for found, expected in ((reading.following, shares), (reading.without, without)):
            best = expected[place].topk(8)
            assert list(found[place].values()) == pytest.approx(best.values.tolist(), abs=1e-6)
            first = visible(subject.tokenizer.decode([int(best.indices[0])]))
            assert next(iter(found[place])).startswith(first)


def test_a_concept_is_shown_at_every_token_not_only_where_it_is_mixed_in(subject):
    ids = subject.encode(TEXT)
    with torch.no_grad():
        output = subject.model(input_ids=ids, output_concept_logits=True)
    for concept in (0, int(output.concept_ids[0, 2, 1])):
        reading = read_text(subject, TEXT, concept)
        assert reading.logits.tolist() == pytest.approx(output.concept_logits[0, :, concept].tolist(), abs=1e-5)
        assert reading.mixed_in.tolist() == (output.concept_ids[0] == concept).any(-1).tolist()
        assert not reading.mixed_in.all()


def test_the_view_shows_one_token_in_detail(subject):
    with gr.Blocks():
        view = text_view(subject, gr.Textbox())
    ((said, found, tokens, bars, place, strongest, after, without, change),) = view.show(TEXT, "7", 3)
    reading = read_text(subject, TEXT, 7)
    assert (said, after, without) == ("", reading.following[2], reading.without[2])
    assert [token for token, _ in tokens] == reading.tokens
    assert max(abs(strength) for _, strength in tokens) <= 0.6
    assert bars["logit"].tolist() == reading.logits.tolist()
    assert place["value"] == 3
    assert strongest["value"] == "7"
    assert subject.names([7])[7] in found.replace("\\", "")
    assert "nats" in change
    ((*_, place, _, _, _, _),) = view.show(TEXT, "", 999)  # beyond the text: its last token
    assert place["value"] == len(reading.tokens)
