"""The text view: a prompt, its tokens coloured by concepts, and one token in detail."""

from typing import Any, NamedTuple

import gradio as gr

from cocomix.explorer.concepts import resolve_concept
from cocomix.explorer.look import block_script
from cocomix.explorer.markup import message
from cocomix.explorer.read_text import TextReading, read_text
from cocomix.explorer.subject import Subject
from cocomix.explorer.text_markup import legend, no_token, token_chips, token_detail
from cocomix.runtime.errors import CoCoMixError

__all__ = ["TextPage", "text_page"]

_EXAMPLE = "The function returns a list of the items in the file."


class TextPage(NamedTuple):
    """The parts that other views refer to."""

    colour: gr.Textbox
    chips: gr.HTML
    often: gr.HTML
    detail: gr.HTML
    again: dict[str, Any]  # reads the text again: arguments of an event


def text_page(subject: Subject) -> TextPage:
    """Build the view inside the tab that is open."""
    reading = gr.State(None, time_to_live=3600)
    with gr.Row(elem_classes="cx-ask"):
        prompt = gr.Textbox(
            _EXAMPLE,
            label="Text",
            info=f"Enter reads it, Shift+Enter starts a line; up to {subject.limits.tokens} tokens",
            max_lines=8,
            scale=5,
            elem_id="cx-text-prompt",
            max_length=subject.limits.prompt_characters,
        )
        colour = gr.Textbox(
            label="Colour by concept",
            info="number or words; empty = the strongest",
            max_lines=1,
            scale=2,
            elem_id="cx-text-colour",
            max_length=subject.limits.search_characters,
        )
        button = gr.Button("Read", variant="primary", scale=0, min_width=110, elem_id="cx-read")
    said = gr.HTML(elem_id="cx-text-said", js_on_load=None)
    often = gr.HTML(elem_id="cx-legend", js_on_load=block_script())
    chips = gr.HTML(elem_id="cx-tokens", js_on_load=block_script())
    detail = gr.HTML(elem_id="cx-detail", js_on_load=block_script())

    def read(text: str, wanted: str) -> tuple[TextReading | None, str, str, str, str]:
        try:
            concept = resolve_concept(subject, wanted) if wanted.strip() else None
            found = read_text(subject, text, concept)
        except CoCoMixError as error:
            return None, message(str(error), "error"), "", "", ""
        place = max(range(len(found.tokens)), key=lambda place: found.tokens[place].strength)
        return found, "", legend(found), token_chips(found, place), token_detail(found, place)

    def open_token(event: gr.EventData, found: TextReading | None) -> str:
        place = int(event._data["value"])
        return token_detail(found, place) if found is not None and 0 <= place < len(found.tokens) else no_token()

    again = {
        "fn": read,
        "inputs": [prompt, colour],
        "outputs": [reading, said, often, chips, detail],
        "concurrency_id": "model",
        "api_visibility": "private",
    }
    gr.on([button.click, prompt.submit, colour.submit], **again)
    chips.select(
        open_token, reading, detail, show_progress="hidden", trigger_mode="multiple", api_visibility="private"
    )  # while one token is opened, another may be chosen
    return TextPage(colour, chips, often, detail, again)
