"""The text view: how strongly one concept is predicted at every token of a text, and one token in detail."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import gradio as gr
from torch import Tensor

from cocomix.evaluation import inference
from cocomix.evaluation.pages import markdown_text, percent, signed
from cocomix.evaluation.reliance import zero
from cocomix.explorer.parts import QUIET, View, named
from cocomix.explorer.subject import MOST_CHARACTERS, MOST_WORDS, Subject
from cocomix.interpret import visible

_EXAMPLE = "The function returns a list of the items in the file."
_CONCEPTS, _NEXT_TOKENS = 12, 8
_STRONGEST = 0.6  # of full colour, so that text on it stays readable in light and dark


class TextReading(NamedTuple):
    """What the model makes of a text."""

    concept: int
    tokens: list[str]
    logits: Tensor  # the concept's logit at every token, whether it is mixed in there or not. float32 [seq]
    mixed_in: Tensor  # whether it is, that is, among the model's top k. bool [seq]
    concepts: list[list[tuple[int, float]]]  # per token its strongest (concept, logit), strongest first
    following: list[dict[str, float]]  # per token the likeliest next tokens and their probabilities
    without: list[dict[str, float]]  # likewise, with the values of all concepts set to 0 (as `cocomix eval` does)
    divergence: Tensor  # KL divergence of the former distribution from the latter, nats. float32 [seq]


@lru_cache(maxsize=16)  # a visitor who looks at one token after the other reads one text
def read_text(subject: Subject, text: str, concept: int | None = None) -> TextReading:
    """Read a text that is neither empty nor too long, for a concept; by default for the strongest of those that are
    mixed in at half of the tokens or fewer.
    """
    input_ids, model = subject.encode(text), subject.model
    with subject.lock, inference(model, model.device, model.dtype):
        output = model(input_ids=input_ids, use_cache=False, output_concept_logits=True)
        without = model(input_ids=input_ids, use_cache=False, concept_intervention=zero).logits[0]
        ids, values = output.concept_ids[0], output.concept_values[0]  # [seq, k]
        if concept is None:
            often = ids.flatten().bincount()[ids] > len(ids) / 2
            concept = int(ids.flatten()[values.masked_fill(often, float("-inf")).argmax()])
        log_with, log_without = output.logits[0].float().log_softmax(-1), without.float().log_softmax(-1)
        strongest = zip(ids[:, :_CONCEPTS].tolist(), values[:, :_CONCEPTS].tolist(), strict=True)
        return TextReading(
            concept,
            tokens=[subject.tokenizer.decode([token]) for token in input_ids[0].tolist()],
            logits=output.concept_logits[0, :, concept].float().cpu(),
            mixed_in=(ids == concept).any(-1).cpu(),
            concepts=[list(zip(*row, strict=True)) for row in strongest],
            following=_likeliest(subject, log_with),
            without=_likeliest(subject, log_without),
            divergence=(log_with.exp() * (log_with - log_without)).sum(-1).clamp_min(0).cpu(),
        )


def _likeliest(subject: Subject, log_probabilities: Tensor) -> list[dict[str, float]]:
    """Per position of [seq, vocab] the likeliest tokens, made visible, with their probabilities."""
    best = log_probabilities.exp().topk(min(_NEXT_TOKENS, log_probabilities.shape[-1]), dim=-1)
    found: list[dict[str, float]] = []
    for tokens, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        shown = [visible(subject.tokenizer.decode([token])) or "∅" for token in tokens]
        # Parts of characters look alike; each keeps its own bar.
        names = (one if shown.count(one) == 1 else f"{one} [{token}]" for one, token in zip(shown, tokens, strict=True))
        found.append(dict(zip(names, shares, strict=True)))
    return found


def text_view(subject: Subject, query: gr.Textbox) -> View:
    """Build the view inside the tab that is open."""
    import pandas as pd

    with gr.Row():
        about = f"Enter reads it; up to {subject.tokens} tokens"
        text = gr.Textbox(
            _EXAMPLE, label="Text", info=about, max_lines=8, max_length=MOST_CHARACTERS, scale=3, elem_id="cx-text"
        )
        about = "number or words; empty = the strongest"
        concept = gr.Textbox(label="Concept", info=about, max_length=MOST_WORDS, min_width=200)
        button = gr.Button("Read", variant="primary", scale=0, min_width=90)
    said, found = gr.HTML(js_on_load=None), gr.Markdown(elem_id="cx-found")
    tokens = gr.HighlightedText(
        label="Coloured by the concept's logit: red above 0, purple below; choose a token", elem_id="cx-tokens"
    )
    colours = {"mixed in": "#d55e00", "not mixed in": "#8a94a6"}
    look: dict[str, Any] = {"color": "concept is", "color_map": colours, "tooltip": "all", "height": 230, "buttons": []}
    plot = gr.BarPlot(x="token", y="logit", **look)
    place = gr.Slider(1, subject.tokens, 1, step=1, precision=0, label="Token", elem_id="cx-place", buttons=[])
    with gr.Row():
        about = "id, name, logit; choosing one colours the text by it"
        strongest = gr.Radio(
            [], label="Strongest concepts at this token", info=about, min_width=260, elem_id="cx-strongest"
        )
        after = gr.Label(label="Next token", show_heading=False, min_width=260, elem_id="cx-after")
        without = gr.Label(label="Next token without concepts", show_heading=False, min_width=260, elem_id="cx-without")
    change = gr.Markdown()

    def show(text: str, wanted: str, place: int) -> Iterator[list[Any]]:
        reading = read_text(subject, text, subject.concept(wanted) if wanted.strip() else None)
        at = min(place, len(reading.tokens)) - 1
        names = subject.names({reading.concept, *(concept for concept, _ in reading.concepts[at])})
        logits, here = reading.logits.tolist(), visible(reading.tokens[at])
        largest = max(map(abs, logits)) or 1.0
        bars = {
            "token": range(1, len(logits) + 1),
            "logit": logits,
            "concept is": ["mixed in" if there else "not mixed in" for there in reading.mixed_in.tolist()],
            "text": [visible(token) for token in reading.tokens],
        }
        told = f"After token {at + 1} ({markdown_text(here)}), concepts change the distribution of the next one by "
        told += f"{float(reading.divergence[at]):.3f} nats (KL divergence)."
        yield [
            "",
            _found(subject, reading, names),
            [(token, _STRONGEST * one / largest) for token, one in zip(reading.tokens, logits, strict=True)],
            pd.DataFrame(bars),
            gr.update(maximum=len(logits), value=at + 1, label=f"Token {at + 1}: {here}"),
            gr.update(
                choices=[(f"{named(one, names)} · {logit:.2f}", str(one)) for one, logit in reading.concepts[at]],
                value=str(reading.concept),
            ),
            reading.following[at],
            reading.without[at],
            told if subject.model.config.form.mixes_in else "This run mixes no concepts in, so both are the same.",
        ]

    def chosen(event: gr.SelectData) -> int:
        return int(event.index) + 1

    results = [found, tokens, plot, place, strongest, after, without, change]
    view = View("text", {"text": text, "concept": concept, "token": place}, said, results, show, query, subject)
    # `input`, not `change`: what the view itself sets must not show it again over another view's link.
    gr.on([button.click, text.submit, concept.submit, place.input], **view.again())
    tokens.select(chosen, None, place, **QUIET).then(**view.again())
    strongest.input(str, strongest, concept, **QUIET).then(**view.again())
    return view


def _found(subject: Subject, reading: TextReading, names: dict[int, str]) -> str:
    """Where the concept is predicted, in two sentences."""
    count, total = int(reading.mixed_in.sum()), len(reading.tokens)
    usual = ""
    if subject.atlas is not None:
        usual = f", in held-out text at {percent(subject.atlas.card(reading.concept).density)}"
    told = named(reading.concept, names).removeprefix("concept ")
    return (
        f"Concept **{markdown_text(told)}** is mixed in at {count} of {total} tokens here "
        f"({percent(count / total)}){usual}: where its logit is among the {subject.model.config.concept_topk} largest. "
        f"The logit goes from {signed(float(reading.logits.min()))} to {signed(float(reading.logits.max()))}."
    )
