from urllib.parse import parse_qsl

import gradio as gr
import pytest

from cocomix.explorer.compare_view import compare_view
from cocomix.explorer.concept_view import concept_view
from cocomix.explorer.parts import check_run, message, named
from cocomix.explorer.steer_view import steer_view
from cocomix.explorer.text_view import text_view
from cocomix.runtime.errors import CoCoMixError

EVIL = "a & b = <script>\n\t+%20 é 🙂 #?"
VALUES = {
    "text": [EVIL, "7", 3],
    "concept": ["list & <b>"],
    "steer": [EVIL, "7", "set to", -2.5, "3:ban 4+1", EVIL, 12, 0.3, 0, 7],
    "compare": ["flops", ["plain"]],
}


@pytest.fixture(scope="module")
def views(subject):
    with gr.Blocks():
        query = gr.Textbox()
        built = (text_view(subject, query), concept_view(subject, query)[0])
        return {view.name: view for view in (*built, steer_view(subject, query)[0], compare_view(subject, query))}


@pytest.mark.parametrize("name", VALUES)
def test_a_link_restores_a_view(subject, views, name):
    query = dict(parse_qsl(views[name].link(VALUES[name]), keep_blank_values=True))
    assert query["view"] == name
    check_run(subject, query)
    assert views[name].restored(query) == VALUES[name]


def test_a_field_that_is_not_drawn_yet_is_empty_in_a_link(views):
    """Gradio gives None for a text box in a closed accordion."""
    values = [None if value == "3:ban 4+1" else value for value in VALUES["steer"]]
    query = dict(parse_qsl(views["steer"].link(values), keep_blank_values=True))
    assert views["steer"].restored(query) == ["" if value is None else value for value in values]


def test_a_concept_without_a_name_is_not_told_twice():
    assert named(12, {12: "list, items"}) == "12 list, items"
    assert named(12, {12: "concept 12"}) == "concept 12"
    assert named(12, {}) == "12"


def test_what_a_link_leaves_out_stays(views):
    assert views["text"].restored({}) == [gr.skip()] * 3


@pytest.mark.parametrize("run", ["0123456789ab", "", None])
def test_a_link_to_another_run_is_refused(subject, run):
    query = {"view": "text"} if run is None else {"view": "text", "run": run}
    with pytest.raises(CoCoMixError, match=subject.fingerprint):
        check_run(subject, query)


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("text", {"token": "0"}),
        ("text", {"token": "x"}),
        ("text", {"concept": "x" * 201}),
        ("steer", {"do": "explode"}),
        ("steer", {"by": "nan"}),
        ("steer", {"by": "1e9"}),
        ("steer", {"tokens": "100000"}),
        ("steer", {"temperature": "inf"}),
        ("steer", {"top_k": "-1"}),
        ("steer", {"seed": "-3"}),
        ("compare", {"axis": "cost"}),
        ("compare", {"runs": "mixed,other"}),
    ],
)
def test_a_link_out_of_range_is_refused(views, name, query):
    ((field, value),) = query.items()
    with pytest.raises(CoCoMixError, match=f"{field}.*{'201' if len(value) > 200 else value.split(',')[-1]}"):
        views[name].restored(query)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("text", 0, "x" * 8001),
        ("text", 1, "x" * 201),
        ("text", 2, 10**6),
        ("concept", 0, "x" * 201),
        ("steer", 2, "explode"),
        ("steer", 3, float("nan")),
        ("steer", 6, 10**6),
        ("steer", 7, -1),
        ("steer", 9, -3),
        ("compare", 1, ["other"]),
    ],
)
def test_what_a_page_could_not_send_is_refused(views, name, place, value):
    """A page's own bounds hold for requests that no page has sent, and end in a sentence."""
    values = list(VALUES[name])
    values[place] = value
    ((_, said, *_),) = views[name].again()["fn"](*values)
    assert 'role="alert"' in said
    assert list(views[name].parameters)[place] in said.lower()


def test_errors_are_shown_in_their_views(views):
    ((_, said, *_),) = views["text"].again()["fn"]("", None, 1)
    assert 'role="alert"' in said
    assert "<b>" not in message("<b>x</b>")


def test_the_generic_families_of_the_page_s_fonts_are_not_in_quotes():
    """In quotes the names stand for fonts called so, of which there are none."""
    from cocomix.explorer.app import theme

    made = theme()
    assert made.font.split(", ")[0] == "system-ui"
    assert made.font_mono.split(", ")[0] == "ui-monospace"
