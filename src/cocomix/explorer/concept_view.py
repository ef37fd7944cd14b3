"""The concept view: concepts found or ranked, and one concept's card from the atlas."""

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import gradio as gr

from cocomix.evaluation import Table
from cocomix.evaluation.pages import NOTHING, markdown_text, percent, signed
from cocomix.explorer.parts import QUIET, View, named
from cocomix.explorer.subject import MOST_WORDS, Subject
from cocomix.interpret import (
    ConceptAtlas,
    ConceptCard,
    ConceptHit,
    Context,
    Ranking,
    TokenChanges,
    describe_run_concepts,
    visible,
)

_LISTED, _AROUND = 12, 100  # concepts listed; letters of a context on either side
_ENOUGH = 30  # predictions, below which a precision or an AUROC of 1 is luck
_RANKINGS = {
    "with the highest precision": "precision",
    "best told from the rest (AUROC)": "auroc",
    "predicted most often": "predicted_count",
    "most often a label": "label_count",
}
_MEASURES = {
    "density": "of all held-out tokens, where it is predicted (among the model's top k)",
    "label density": "of labelled tokens, where it is a label",
    "precision": "of where it is predicted, where it is a label",
    "recall": "of where it is a label, where it is predicted",
    "lift": "precision over what a blind guess would have; 1 = no better",
    "AUROC": "chance that its logit is higher where it is a label; 0.5 = no better than chance",
}


def concept_view(subject: Subject, query: gr.Textbox) -> tuple[View, gr.Button, gr.Button]:
    """Build the view inside the tab that is open; also returns the buttons that colour the text by it and steer it."""
    import pandas as pd

    atlas = subject.atlas
    first = [] if atlas is None else _ranked(atlas, "precision")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            about = "number, or words of names and contexts; Enter searches"
            start = str(first[0].id) if first else "0"
            concept = gr.Textbox(start, label="Concept", info=about, max_length=MOST_WORDS)
            order = gr.Dropdown(list(_RANKINGS.items()), label="List those", visible=bool(first))
            hits = gr.Radio(_options(first), label="Concepts", elem_id="cx-hits")
        with gr.Column(scale=3, min_width=280):
            said, card = gr.HTML(js_on_load=None), gr.Markdown(elem_id="cx-card")
            with gr.Row():
                colour, steer = gr.Button("Colour the text by it", size="sm"), gr.Button("Steer it", size="sm")
            words, effects = _side_by_side("cx-words", "cx-effects")
            histogram = gr.BarPlot(x="logit where predicted", y="tokens", height=200, buttons=[])
            predicted, labels = _side_by_side("cx-predicted", "cx-labels")
            nearest = gr.Radio([], label="Nearest concepts, by the cosine of their vectors", elem_id="cx-nearest")

    def show(text: str) -> Iterator[list[Any]]:
        found, chosen = subject.find(text, _LISTED), subject.concept(text)
        listed = gr.skip() if text.strip().isdecimal() else gr.update(choices=_options(found), value=str(chosen))
        if atlas is None:
            yield ["", listed, _described(subject, chosen), *[gr.update(visible=False)] * (len(results) - 2)]
            return
        known = atlas.card(chosen)
        names = subject.names(near for near, _ in known.nearest)
        near = [(f"{named(one, names)} · {cosine:.2f}", str(one)) for one, cosine in known.nearest]
        middles = [(low + high) / 2 for low, high in pairwise(known.histogram.edges)]
        shown = [
            "",
            listed,
            _card(known),
            "\n\n".join(_words(*each) for each in (("words there", known.terms), ("words after", known.next_terms))),
            _changes(known.effect_amount, known.raised, known.lowered),
            pd.DataFrame({"logit where predicted": middles, "tokens": known.histogram.counts}),
            _contexts("Where it is predicted, from its largest logit down", known.predicted_contexts),
            _contexts("Where it is a label; the last ones are missed", known.label_contexts),
            gr.update(choices=near, value=None),
        ]
        yield shown
        if known.raised is None and subject.model.config.form.mixes_in:
            with subject.lock:
                effect = atlas.measure_effect(subject.model, subject.tokenizer, chosen)
            yield [*shown[:4], _changes(effect.amount, effect.raised, effect.lowered), *shown[5:]]

    def ranked(by: Any) -> Any:
        return gr.update(choices=_options(_ranked(atlas, by)), value=None) if atlas is not None else gr.skip()

    results = [hits, card, words, effects, histogram, predicted, labels, nearest]
    view = View("concept", {"concept": concept}, said, results, show, query, subject)
    concept.submit(**view.again())
    order.input(ranked, order, hits, **QUIET)
    for listed in (hits, nearest):
        listed.input(str, listed, concept, **QUIET).then(**view.again())
    return view, colour, steer


def _side_by_side(*ids: str) -> list[gr.Markdown]:
    texts = []
    with gr.Row():
        for name in ids:
            with gr.Column(min_width=280):
                texts.append(gr.Markdown(elem_id=name))
    return texts


def _ranked(atlas: ConceptAtlas, by: Ranking) -> list[ConceptHit]:
    """The first concepts of a ranking that are predicted often enough; all of them where none is."""
    hits = atlas.top(20 * _LISTED, by)
    often = (hit for hit in hits if atlas.card(hit.id).predicted_count >= _ENOUGH)
    return list(islice(often, _LISTED)) or hits[:_LISTED]


def _options(hits: Sequence[ConceptHit]) -> list[tuple[str, str]]:
    """Concepts to choose from: number, name, and of the words that were found those that the name does not say."""
    more = (hit.snippet.replace(hit.name, "").strip(" ,…") for hit in hits)
    words = (f" — {one}" if one else "" for one in more)
    return [(named(hit.id, {hit.id: hit.name}) + added, str(hit.id)) for hit, added in zip(hits, words, strict=True)]


def _card(card: ConceptCard) -> str:
    rows = []
    for name, meaning in _MEASURES.items():
        value = getattr(card, name.lower().replace(" ", "_"))
        shown = NOTHING if value is None else f"{value:.2f}" if name in ("lift", "AUROC") else percent(value)
        rows.append((name, shown, meaning))
    table = Table(("in held-out text", "value", "what it is"), rows).markdown()
    return f"### {markdown_text(named(card.id, {card.id: card.name}))}\n\n{table}"


def _words(heading: str, words: Sequence[tuple[str, float]]) -> str:
    return Table((heading, "times likelier"), [(word, f"{lift:.1f}") for word, lift in words]).markdown()


def _changes(amount: float | None, raised: TokenChanges | None, lowered: TokenChanges | None) -> str:
    """The tokens that become likelier and less likely when the concept is turned up."""
    if amount is None or raised is None or lowered is None:
        return "Its effect on the next token is being measured…"
    pairs = zip(raised, lowered, strict=False)
    rows = [(visible(up), signed(more), visible(down), signed(less)) for (up, more), (down, less) in pairs]
    caption = f"Adding {amount:.2f} to its logit changes log-probabilities of the next token (nats)"
    return Table(("raises", "by", "lowers", "by"), rows, caption).markdown()


def _contexts(heading: str, contexts: Sequence[Context]) -> str:
    """Contexts with the concept's token marked, each behind its logit and its place among the others."""
    lines = [
        f"- **{signed(one.strength)}**, {_place(one.quantile)}: …{_text(one.before[-_AROUND:])}"
        f"<mark>{_text(one.token)}</mark>{_text(one.after[:_AROUND])}…"
        for one in contexts
    ]
    return f"#### {heading}\n\n" + ("\n".join(lines) or "Nowhere in the text read.")


def _place(quantile: float) -> str:
    """Where a logit stands among those of all such places."""
    return "the largest" if quantile == 1 else "the smallest" if quantile == 0 else f"above {quantile:.0%} of them"


def _text(text: str) -> str:
    """A piece of text as Markdown, spaces at its ends kept."""
    shown = text.replace("\n", "↵")
    return f"{' ' * shown.startswith(' ')}{markdown_text(shown) or '·'}{' ' * shown.endswith(' ')}" if shown else ""


def _described(subject: Subject, concept: int) -> str:
    """What the labels tell of a concept where there is no atlas."""
    found = describe_run_concepts(subject.run, [concept]).get(concept)
    known = "The labels of this run are not where it found them, so nothing is known of its concepts."
    if found is not None:
        known = f"A label at {found.count:,} training positions.\n\n{_words('words there', found.terms)}"
    return (
        f"### {concept} {markdown_text(found.name if found else '')}\n\n{known}\n\nThere is no atlas of this run; make "
        f"one with `cocomix atlas {subject.run.path}` and start the explorer again."
    )
