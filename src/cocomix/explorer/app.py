"""The page: four views, and the ways from one to another."""

from typing import Any

import gradio as gr

from cocomix.evaluation.formatting import si
from cocomix.explorer.compare_page import compare_page
from cocomix.explorer.concept_page import concept_view
from cocomix.explorer.limits import LIMITS
from cocomix.explorer.markup import escaped, message
from cocomix.explorer.steer_page import steer_page
from cocomix.explorer.subject import Subject
from cocomix.explorer.text_page import text_page
from cocomix.runtime.errors import CoCoMixError

__all__ = ["build_app"]

_VIEWS = ("text", "concept", "steer", "compare")


def build_app(subject: Subject) -> gr.Blocks:
    """The page as Gradio blocks, with its queue; `serve` launches it."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    app: gr.Blocks
    with gr.Blocks(title=f"{subject.run.manifest.name} · cocomix", analytics_enabled=False, fill_width=True) as app:
        gr.HTML(_header(subject), js_on_load=None)
        with gr.Tabs(elem_id="cx-views") as tabs:
            with gr.Tab("Text", id="text"):
                text = text_page(subject)
            with gr.Tab("Concept", id="concept"):
                concept = concept_view(subject)
            with gr.Tab("Steer", id="steer"):
                steer = steer_page(subject)
            with gr.Tab("Compare", id="compare"):
                compare_page(subject)

        def open_concept(event: gr.EventData) -> list[Any]:
            return [gr.Tabs(selected="concept"), _clicked(event)]

        def colour_by(event: gr.EventData) -> list[Any]:
            return [gr.Tabs(selected="text"), str(_clicked(event))]

        def add_clicked(event: gr.EventData, *slots: Any) -> list[Any]:
            return add_to_steer(_clicked(event), *slots)

        def add_to_steer(concept: int, *slots: Any) -> list[Any]:
            try:
                return [gr.Tabs(selected="steer"), "", *steer.slots.with_concept(slots, concept)]
            except CoCoMixError as error:
                kept = [gr.skip()] * len(steer.slots.outputs)
                return [gr.Tabs(selected="steer"), message(str(error), "error"), *kept]

        def colour_by_open(concept: int) -> list[Any]:
            return [gr.Tabs(selected="text"), str(concept)]

        steered = [tabs, steer.said, *steer.slots.outputs]
        coloured = [tabs, text.colour]
        for part in (text.often, text.detail, concept.hits, concept.card, steer.suggested):
            part.click(open_concept, None, [tabs, concept.chosen], **quiet)
            part.apply(colour_by, None, coloured, **quiet).then(**text.again)
            part.edit(add_clicked, steer.slots.inputs, steered, **quiet)
        concept.steer.click(add_to_steer, [concept.chosen, *steer.slots.inputs], steered, **quiet)
        concept.colour.click(colour_by_open, concept.chosen, coloured, **quiet).then(**text.again)

        def restore(request: gr.Request) -> list[Any]:
            query = dict(request.query_params)
            view = query.get("view")
            if view != "steer":
                return [gr.Tabs(selected=view if view in _VIEWS else "text"), *[gr.skip()] * len(steer.restored)]
            return [gr.Tabs(selected="steer"), *steer.restore(subject, query)]

        app.load(restore, None, [tabs, *steer.restored], **quiet)
        app.load(**text.again)
    app.queue(max_size=LIMITS.waiting, default_concurrency_limit=LIMITS.running, api_open=False)
    return app


def _clicked(event: gr.EventData) -> int:
    """The concept of the button that was clicked."""
    return int(event._data["value"])


def _header(subject: Subject) -> str:
    manifest = subject.run.manifest
    facts = (
        f"{manifest.objective}, {manifest.mixing}",
        f"{subject.num_concepts:,} concepts",
        f"{si(manifest.parameters.total)} parameters",
        f"{manifest.final.eval_loss:.3f} nats per token",
        "atlas" if subject.atlas is not None else "no atlas",
    )
    return (
        f'<header class="cx-header"><h1>{escaped(manifest.name)}</h1><p>'
        + "".join(f"<span>{escaped(fact)}</span>" for fact in facts)
        + "</p></header>"
    )
