"""The concept view: search by name or number, and a concept's card."""

from typing import NamedTuple

import gradio as gr

from cocomix.explorer.concept_markup import card_page, effects, hit_list
from cocomix.explorer.concepts import concept_page, find_concepts, measure_concept
from cocomix.explorer.look import block_script
from cocomix.explorer.markup import empty, message
from cocomix.explorer.subject import Subject
from cocomix.runtime.errors import CoCoMixError

__all__ = ["ConceptView", "concept_view"]


class ConceptView(NamedTuple):
    """The parts that other views refer to."""

    chosen: gr.Number
    hits: gr.HTML
    card: gr.HTML
    steer: gr.Button
    colour: gr.Button


def concept_view(subject: Subject) -> ConceptView:
    """Build the view inside the tab that is open."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            search = gr.Textbox(
                label="Search",
                info="a number, or words of names and contexts; Enter searches",
                max_lines=1,
                elem_id="cx-search",
                max_length=subject.limits.search_characters,
            )
            hits = gr.HTML(_first_hits(subject), elem_id="cx-hits", js_on_load=block_script())
        with gr.Column(scale=3):
            chosen = gr.Number(None, label="Concept", precision=0, elem_id="cx-chosen", visible=False)
            with gr.Row(visible=False) as actions:
                steer = gr.Button("Steer it", size="sm", elem_id="cx-steer-it")
                colour = gr.Button("Colour the text by it", size="sm", elem_id="cx-colour-by-it")
                measure = gr.Button("Measure its effect", size="sm", elem_id="cx-measure")
            said = gr.HTML(elem_id="cx-concept-said", js_on_load=None)
            measured = gr.HTML(elem_id="cx-measured", js_on_load=None)
            card = gr.HTML(
                empty("Search, or choose a concept on the left."), elem_id="cx-card", js_on_load=block_script()
            )

    def find(text: str) -> tuple[str, str]:
        try:
            return hit_list(find_concepts(subject, text), text.strip()), ""
        except CoCoMixError as error:
            return "", message(str(error), "error")

    def show(concept: float | None) -> tuple[str, str, str, dict[str, object]]:
        if concept is None:
            return "", "", empty("Search, or choose a concept on the left."), gr.update(visible=False)
        try:
            page = concept_page(subject, subject.concept(concept))
        except CoCoMixError as error:
            return message(str(error), "error"), "", "", gr.update(visible=False)
        return "", "", card_page(page, subject.run.path), gr.update(visible=True)

    def measure_now(concept: float | None) -> str:
        try:
            return effects(*measure_concept(subject, subject.concept(concept)))
        except CoCoMixError as error:
            return message(str(error), "error")

    search.submit(find, search, [hits, said], api_visibility="private")
    chosen.change(show, chosen, [said, measured, card, actions], api_visibility="private")
    measure.click(measure_now, chosen, measured, concurrency_id="model", api_visibility="private")
    return ConceptView(chosen, hits, card, steer, colour)


def _first_hits(subject: Subject) -> str:
    return hit_list(find_concepts(subject, ""), "")
