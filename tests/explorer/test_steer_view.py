import re

import gradio as gr
import pytest

from cocomix.explorer.steer_view import read_edits, steer_view
from cocomix.interpret import parse_steer
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError
from tests.workshop import CONCEPTS

PROMPT = "the list of"


@pytest.fixture(scope="module")
def steer(subject):
    with gr.Blocks():
        return steer_view(subject, gr.Textbox())


def shown(view, **changes):
    values = {"prompt": PROMPT, "concept": "", "do": "add", "by": 5.0, "more": "", "hint": "", "tokens": 8}
    values |= {"temperature": 0.8, "top_k": 50, "seed": 0, **changes}
    return list(view.show(*values.values()))[-1]


def unpredicted(subject):
    """A concept that is nowhere mixed in here."""
    found = subject.model(input_ids=subject.encode(PROMPT), use_cache=False).concept_ids.unique().tolist()
    return next(one for one in range(CONCEPTS) if one not in found)


def test_edits_from_the_pages_fields(subject):
    assert read_edits(subject, "3", "add", -2.5, "") == [ConceptEdit(3, "add", -2.5)]
    assert read_edits(subject, "3", "multiply", -2, "7:ban 11:=9@4") == [
        ConceptEdit(3, "scale", -2.0),
        ConceptEdit(7, "ban", 0.0),
        ConceptEdit(11, "set", 9.0, start=4),
    ]
    assert read_edits(subject, "3", "ban", 5, "") == [parse_steer("3:ban")]
    assert read_edits(subject, "3", "set to", 5, "") == [parse_steer("3:=5")]
    assert read_edits(subject, "", "add", 5, "") == []


@pytest.mark.parametrize(
    ("concept", "by", "more", "at_fault"),
    [
        (str(CONCEPTS), 5, "", str(CONCEPTS)),
        ("zzzzqqq", 5, "", "zzzzqqq"),
        ("3", float("nan"), "", "nan"),
        ("3", 1e9, "", "1e+09"),
        ("3", 5, "nonsense", "nonsense"),
        ("3", 5, f"{CONCEPTS}+1", str(CONCEPTS)),
        ("3", 5, "7+90", "90"),
        ("3", 5, "1:ban 2:ban 4:ban 5:ban 6:ban", "6"),
    ],
)
def test_edits_out_of_range_are_refused(subject, concept, by, more, at_fault):
    with pytest.raises(CoCoMixError, match=re.escape(at_fault)):
        read_edits(subject, concept, "add", by, more)


def test_the_view_opens_on_adding(steer):
    assert steer[0].parameters["do"].value == "add"


def test_an_edit_that_cannot_act_says_why_and_what_would(subject, steer):
    concept = unpredicted(subject)
    said, untouched, steered, *_ = shown(steer[0], concept=str(concept), do="multiply", by=1.5, temperature=0, tokens=1)
    assert untouched == steered
    assert 'role="alert"' in said
    assert "0.00%" in said
    would = re.search(rf"{concept}\+([0-9.]+)", said)
    acts, _, _turned, *_ = shown(steer[0], concept=str(concept), by=float(would[1]), temperature=0, tokens=1)
    assert 'role="status"' in acts


def test_a_text_is_marked_where_it_parts_from_the_untouched_one(subject, steer):
    _, untouched, steered, hinted, _teacher, *_ = shown(steer[0], concept="3", by=30, hint="a key")
    assert [kind for _, kind in untouched] == [None]
    assert "".join(text for text, _ in steered).startswith(PROMPT)
    same = steered[0][0]
    assert untouched[0][0].startswith(same)
    assert len(hinted) >= 1
    said, _, steered, hinted, *_ = shown(steer[0])
    assert "choose a concept" in said.lower()
    assert steered[0][0] != PROMPT


def test_a_concept_of_another_view_is_added_by_what_its_card_names(subject, steer):
    concept = subject.atlas.top(1)[0].id
    card = subject.atlas.card(concept)
    assert steer[2](str(concept)) == [
        str(concept),
        "add",
        card.effect_amount,
        ", ".join(word for word, _ in card.terms),
    ]
