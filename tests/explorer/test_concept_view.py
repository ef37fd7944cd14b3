import re

import gradio as gr
import pytest

from cocomix.explorer.concept_view import concept_view
from cocomix.explorer.parts import named
from cocomix.interpret import Context
from cocomix.runtime.errors import CoCoMixError


@pytest.fixture(scope="module")
def view(subject):
    with gr.Blocks():
        return concept_view(subject, gr.Textbox())[0]


def test_the_view_opens_on_a_concept(subject, view):
    opened = int(view.parameters["concept"].value)
    assert str(opened) == view.results[0].choices[0][1]
    assert subject.atlas.card(opened).predicted_count >= 30


def test_a_card_shows_what_the_atlas_knows(subject, view):
    concept = subject.atlas.top(1)[0].id
    known = subject.atlas.card(concept)
    said, _listed, card, words, effects, histogram, predicted, labels, nearest = list(view.show(str(concept)))[-1]
    assert said == ""
    assert named(concept, {concept: known.name}) in card.replace("\\", "")
    for measure in ("precision", "recall", "lift", "AUROC"):
        assert measure in card
    assert f"{known.auroc:.2f}" in card
    assert all(f"{lift:.1f}" in words for _, lift in known.terms)
    assert effects.count("\n") >= len(known.raised)
    assert histogram["tokens"].tolist() == list(known.histogram.counts)
    assert predicted.count("<mark>") == len(known.predicted_contexts) > 4
    assert labels.count("<mark>") == len(known.label_contexts)
    assert [value for _, value in nearest["choices"]] == [str(near) for near, _ in known.nearest]


def test_an_effect_that_the_atlas_lacks_is_measured(subject, view):
    lacking = next(one for one in range(subject.num_concepts) if subject.atlas.card(one).raised is None)
    first, last = view.show(str(lacking))
    assert "being measured" in first[4]
    effect = subject.atlas.measure_effect(subject.model, subject.tokenizer, lacking)
    assert f"{effect.amount:.2f}" in last[4]


def test_a_list_says_no_word_twice(subject, view):
    labels = [label for label, _ in view.results[0].choices]
    for hit in subject.atlas.top(12):
        ((_, listed, *_), *_) = view.show(hit.name)
        labels += [] if "choices" not in listed else [label for label, _ in listed["choices"]]
    for label in labels:
        name, _, more = re.sub(r"^\d+ ", "", label).partition(" — ")
        assert not (name and more.startswith(name))


def test_a_corpus_is_never_markup(monkeypatch, subject, view):
    evil = "<script>alert(1)</script> **bold** [x](http://evil.example) |\n# y"
    card = subject.atlas.card(0)
    context = Context(evil, evil, evil, 1.0, 1.0, "validation", 0, 0)
    changed = {"name": evil, "terms": ((evil, 2.0),), "raised": ((evil, 1.0),), "lowered": ((evil, -1.0),)}
    monkeypatch.setattr(
        type(subject.atlas),
        "card",
        lambda self, one: type(card)(**{**vars(card), **changed, "predicted_contexts": (context,)}),
    )
    (shown,) = view.show("0")
    for part in shown[2:5] + shown[6:8]:
        assert "<script" not in part.replace("\\<", "")
        assert "](http" not in part.replace("\\]", "")


def test_what_is_not_found_is_said(view):
    with pytest.raises(CoCoMixError, match="zzzzqqq"):
        list(view.show("zzzzqqq"))


def test_without_an_atlas_the_page_says_how_to_make_one(bare):
    with gr.Blocks():
        view = concept_view(bare, gr.Textbox())[0]
    ((_, _, card, *_),) = view.show("3")
    assert f"cocomix atlas {bare.run.path}" in card
