"""Nothing from users or corpora becomes HTML: every page is parsed, and only the page's own elements are in it."""

from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cocomix.explorer.concept_markup import card_page, hit_list
from cocomix.explorer.concepts import ConceptPage
from cocomix.explorer.markup import message, table
from cocomix.explorer.plots import AXES, curves, histogram
from cocomix.explorer.read_text import NextTokenShift, TextReading, TokenReading
from cocomix.explorer.steer_markup import progress, suggestions, text_columns
from cocomix.explorer.steer_state import SteerState, SteerTexts
from cocomix.explorer.text_markup import legend, token_chips, token_detail
from cocomix.interpret import (
    ConceptCard,
    ConceptHit,
    Context,
    Effect,
    Histogram,
    PredictedConcept,
    SteeringCandidate,
)
from cocomix.model import ConceptEdit
from cocomix.training import CurvePoint

EVIL = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"'&${7*7}{{7*7}}`"


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(page: str) -> Elements:
    found = Elements()
    found.feed(page)
    found.close()
    assert found.open == []
    assert not {"script", "img", "iframe", "a"} & set(found.tags)
    assert not [name for name in found.attributes if name.startswith("on")]
    return found


def reading(concept: int | None = None) -> TextReading:
    concepts = (PredictedConcept(3, 2.5, 1), PredictedConcept(9, -1.0, 2))
    shifts = (NextTokenShift(EVIL, 0.5, 0.25), NextTokenShift("\n", 0.0, 0.1))
    tokens = (
        TokenReading(EVIL, concepts, shifts, 0.1, 2.5, True),
        TokenReading(" list\n", concepts, shifts, 0.0, -1.0, False),
    )
    return TextReading(concept, tokens, {3: EVIL, 9: ""}, mixes=True)


@pytest.mark.parametrize("concept", [None, 3])
def test_the_text_view(concept):
    chips = parsed(token_chips(reading(concept), 1))
    assert "<script>alert(1)</script>" in chips.text
    assert "·list↵" in chips.text
    assert chips.tags.count("button") == 2
    assert {"aria-label", "aria-pressed", "tabindex"} <= chips.attributes
    parsed(legend(reading(concept)))
    detail = parsed(token_detail(reading(concept), 0))
    assert "50.0%" in detail.text
    assert "25.0%" in detail.text


def test_a_single_token_has_a_colour():
    page = reading()
    assert "--s:0.500" in token_chips(TextReading(None, page.tokens[:1], page.names, mixes=True), None)


def test_the_concept_view():
    context = Context(EVIL, EVIL, EVIL, 1.5, 1.0, "validation", 0, 0)
    card = ConceptCard(
        id=3,
        name=EVIL,
        named_from="predictions",
        terms=((EVIL, 2.0),),
        next_terms=(),
        predicted_count=10,
        label_count=0,
        density=0.1,
        label_density=None,
        precision=None,
        recall=None,
        lift=None,
        auroc=None,
        compression_norm=None,
        effect_amount=None,
        detection=None,
        fuzzing=None,
        mean_logit=1.0,
        max_logit=2.0,
        histogram=Histogram((0.0, 1.0, 2.0), (3, 7)),
        predicted_contexts=(context,),
        label_contexts=(),
        raised=((EVIL, 0.5),),
        lowered=((EVIL, -0.25),),
        nearest=((9, 0.5),),
    )
    page = parsed(card_page(ConceptPage(3, card, None, {3: EVIL, 9: EVIL}), Path("runs") / EVIL.replace("/", "_")))
    assert page.text.count("<script>alert(1)</script>") >= 7
    assert "+0.50" in page.text
    assert "−0.25" in page.text
    parsed(hit_list([ConceptHit(3, EVIL, EVIL, 1.0)], EVIL))


def test_the_steer_view():
    state = SteerState(EVIL, (ConceptEdit(3, "scale", 5.0), ConceptEdit(4, "ban")))
    page = text_columns(state, SteerTexts("same then" + EVIL, "same then other", EVIL, 3), "")
    assert "3 × 5, 4 ban" in parsed(page).text
    assert "same then<mark> other</mark>" in page
    assert "why" in parsed(text_columns(state, SteerTexts("", "", None, 0), "why " + EVIL)).text
    parsed(suggestions([SteeringCandidate(Effect(3, 2.0, 0.1, ((EVIL, 0.2),), ()), 0.5)], {3: EVIL}))
    assert "2 of 9 tokens" in parsed(progress(2, 9)).text


def test_messages_and_tables():
    assert 'role="alert"' in message(EVIL, "error")
    parsed(message(EVIL, "error"))
    assert message("") == ""
    parsed(table([EVIL], [[EVIL, EVIL]]))


@pytest.mark.parametrize("axis", AXES)
def test_curves_are_drawn(axis):
    lines = {
        EVIL: [CurvePoint(100 * step, float(step), 1e9 * step, 5.0 - 0.3 * step) for step in range(1, 9)],
        "other": [CurvePoint(800, 8.0, 8e9, 4.0)],
    }
    svg = ElementTree.fromstring(curves(lines, axis, "other").replace(" clip-path", " data-clip"))
    drawn = [element.get("points") for element in svg.iter("polyline")]
    assert [len(points.split()) for points in drawn] == [8, 1]
    heights = [float(point.split(",")[1]) for point in drawn[0].split()]
    assert heights == sorted(heights)  # a falling loss goes down the page
    assert svg.get("aria-label").startswith("validation loss")


def test_a_histogram_is_drawn():
    svg = ElementTree.fromstring(histogram([0.0, 1.0, 2.0, 3.0, 4.0], [0, 4, 2, 0], "logits"))
    heights = [float(bar.get("height")) for bar in svg.iter("rect")]
    assert heights == [68.0, 34.0]
    assert "6 positions from 1.00 to 3.00" in svg.get("aria-label")
    assert histogram([0.0, 1.0], [0], "logits") == ""
