from urllib.parse import parse_qsl

import gradio as gr
import pytest

from cocomix.explorer.compare_view import compare_view
from cocomix.explorer.concept_view import concept_view
from cocomix.explorer.parts import check_run, message
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
    with pytest.raises(CoCoMixError, match=f"{field}.*{value.split(',')[-1]}"):
        views[name].restored(query)


def test_a_long_text_is_cut(subject, views):
    restored = views["text"].restored({"text": "x" * 100_000})
    assert restored[0] == "x" * subject.limits.characters


def test_errors_are_shown_in_their_views(views):
    event = views["text"].again()
    ((link, said, *_),) = event["fn"]("", "", 1)
    assert "view=text" in link
    assert 'role="alert"' in said
    assert "<b>" not in message("<b>x</b>")
