"""HTML of the concept view: hits of a search, and a concept's card."""

from collections.abc import Sequence
from pathlib import Path

from cocomix.evaluation.formatting import NOTHING, percent, si
from cocomix.explorer.concepts import ConceptPage
from cocomix.explorer.markup import concept_button, empty, escaped, number, shown_token, token_bar
from cocomix.explorer.plots import histogram
from cocomix.interpret import ConceptCard, ConceptHit, Context, TokenChanges, WordLifts

__all__ = ["card_page", "effects", "hit_list"]

_CONTEXTS_SHOWN = 8


def hit_list(hits: Sequence[ConceptHit], searched: str) -> str:
    """The concepts found, each a button that opens it."""
    if not hits:
        return empty("Nothing is found; try other words, or a number." if searched else "Write a number or words.")
    what = f"{len(hits)} found, best first" if searched else f"The {len(hits)} predicted most often"
    rows = "".join(
        f"<li>{concept_button(hit.id, hit.name)}<span class='cx-snippet'>{escaped(hit.snippet)}</span></li>"
        for hit in hits
    )
    return f'<p class="cx-hint">{what}</p><ul class="cx-hits">{rows}</ul>'


def card_page(page: ConceptPage, run: Path) -> str:
    """A concept's card: what the atlas knows, or what the labels tell where there is none."""
    name = page.names[page.id]
    title = f"<h3><b>{page.id}</b> {escaped(name) if name else 'no name'}</h3>"
    if page.card is not None:
        return f'<article class="cx-card">{title}{_card(page.card, page)}</article>'
    told = empty("The labels of this run are not where it found them, so nothing is known of its concepts.")
    if page.description is not None:
        about = page.description
        told = (
            f"<p class='cx-hint'>A label at {about.count:,} of the positions looked at.</p><div class='cx-columns'>"
            f"<div><h4>Typical words</h4>{_lifts(about.terms)}</div>"
            f"<div><h4>Words that follow</h4>{_lifts(about.next_terms)}</div></div>"
        )
    advice = (
        "<p class='cx-hint'>There is no atlas of this run. One shows contexts, effects and neighbours and can be "
        f"searched by words; make it with <code>cocomix atlas {escaped(run)}</code> and start the explorer again.</p>"
    )
    return f'<article class="cx-card">{title}{told}{advice}</article>'


def effects(raised: TokenChanges, lowered: TokenChanges) -> str:
    """The tokens a concept raises and lowers when it is turned up, in nats."""
    largest = max((abs(change) for _, change in (*raised, *lowered)), default=1.0)
    digits = 2 if largest >= 0.1 else 4
    columns = "".join(
        f"<div><h4>{heading} <small>mean change, nats</small></h4><ol class='cx-bars {css}'>"
        + "".join(
            token_bar(token, abs(change) / largest, f"{change:+.{digits}f}".replace("-", "\u2212"))
            for token, change in changes
        )
        + "</ol></div>"
        for heading, css, changes in (("Raises", "cx-raised", raised), ("Lowers", "cx-lowered", lowered))
    )
    return f'<div class="cx-columns">{columns}</div>'


def _card(card: ConceptCard, page: ConceptPage) -> str:
    facts = (
        ("predicted", f"{si(card.predicted_count)} × ({percent(card.density)})"),
        ("a label", f"{si(card.label_count)} ×"),
        ("precision", NOTHING if card.precision is None else percent(card.precision)),
        ("recall", NOTHING if card.recall is None else percent(card.recall)),
        ("AUROC", NOTHING if card.auroc is None else number(card.auroc)),
        ("logit, mean", NOTHING if card.mean_logit is None else number(card.mean_logit)),
        ("logit, largest", NOTHING if card.max_logit is None else number(card.max_logit)),
        ("‖W_comp‖", NOTHING if card.compression_norm is None else number(card.compression_norm)),
    )
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    terms = "".join(f"<span>{escaped(term)}</span>" for term, _ in card.terms)
    plot = histogram(card.histogram.edges, card.histogram.counts, "logits where it is predicted") or empty("Never.")
    nearest = "".join(
        f"<li>{concept_button(near, page.names[near])}<span>{number(cosine)}</span></li>"
        for near, cosine in card.nearest
    )
    measured = (
        effects(card.raised, card.lowered)
        if card.raised is not None and card.lowered is not None
        else empty("Its effect on the next token has not been measured yet; the button above does it now.")
    )
    return (
        f'<p class="cx-terms">{terms}</p><dl class="cx-facts">{listed}</dl>{measured}'
        f'<div class="cx-columns"><div><h4>Logits where it is predicted</h4>{plot}</div>'
        f"<div><h4>Nearest concepts <small>cosine</small></h4><ol class='cx-nearest'>{nearest}</ol></div></div>"
        f"<div class='cx-columns'>{_contexts('Where it is predicted', 'logit', card.predicted_contexts)}"
        f"{_contexts('Where it is a label', 'logit', card.label_contexts)}</div>"
    )


def _contexts(heading: str, unit: str, contexts: Sequence[Context]) -> str:
    largest = max((context.strength for context in contexts), default=0.0) or 1.0
    rows = "".join(
        f"<li><span>{number(context.strength, 2 if largest >= 0.1 else 4)}</span><p>{escaped(context.before)}"
        f'<mark style="--s:{max(0.0, context.strength / largest):.2f}">{_focus(context.token)}</mark>'
        f"{escaped(context.after)}</p></li>"
        for context in contexts[:_CONTEXTS_SHOWN]
    )
    return f"<div><h4>{heading} <small>{unit}</small></h4>" + (
        f'<ol class="cx-contexts">{rows}</ol></div>' if rows else empty("Nowhere in the text read.") + "</div>"
    )


def _focus(token: str) -> str:
    """The token itself; one of nothing but white space is made visible."""
    return escaped(token) if token.strip() else shown_token(token)


def _lifts(words: WordLifts) -> str:
    largest = max((lift for _, lift in words), default=1.0)
    return (
        "<ol class='cx-bars'>"
        + "".join(token_bar(word, lift / largest, f"{lift:.1f} ×") for word, lift in words)
        + "</ol>"
    )
