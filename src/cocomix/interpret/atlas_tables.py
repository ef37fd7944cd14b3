"""Hits and cards of an atlas for the terminal."""

import re
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from cocomix.interpret.atlas_cards import ConceptCard, ConceptHit, Context, TokenChanges
from cocomix.interpret.prompts import visible

__all__ = ["card_table", "hits_table"]

_BARS = " ▁▂▃▄▅▆▇█"


def hits_table(hits: Sequence[ConceptHit]) -> Table:
    """One row per concept found."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("concept", "name", "found in"):
        table.add_column(heading, overflow="fold")
    for hit in hits:
        table.add_row(str(hit.id), Text(hit.name), Text(" ".join(hit.snippet.split())))
    return table


def card_table(card: ConceptCard) -> Table:
    """A card as two columns, what and how much."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "concept": f"{card.id}: {card.name}",
        "terms": ", ".join(card.terms),
        "predicted": f"{card.predicted_count:,} ({card.frequency:.2%} of positions), logit above 0 at "
        f"{card.positive_count:,}",
        "label": f"{card.label_count:,}, of these predicted: {_number(card.recall, '.1%')}",
        "logit": f"mean {_number(card.mean_logit, '.2f')}, largest {_number(card.max_logit, '.2f')}",
        "histogram": f"{card.histogram.edges[0]:.1f} {_bars(card.histogram.counts)} {card.histogram.edges[-1]:.1f}",
        "compression norm": _number(card.compression_norm, ".3f"),
        "raises": _changes(card.raised),
        "lowers": _changes(card.lowered),
        "nearest": ", ".join(f"{concept} ({cosine:.2f})" for concept, cosine in card.nearest) or "-",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    for name, contexts in (("predicted at", card.predicted_contexts), ("label at", card.label_contexts)):
        for context in contexts:
            table.add_row(f"{name} ({context.strength:.3g})", _context(context))
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _changes(changes: TokenChanges | None) -> str:
    if changes is None:
        return "not measured"
    return ", ".join(f"{visible(token)} ({nats:+.3f})" for token, nats in changes) or "nothing"


def _bars(counts: Sequence[int]) -> str:
    """Counts as bars, the tallest for the largest; a count above 0 is never empty."""
    largest = max(counts)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // largest) if largest else 0] for count in counts)


def _context(context: Context) -> Text:
    """The context on one line, its token stressed."""
    before, after = (re.sub(r"\s+", " ", part) for part in (context.before, context.after))
    return Text.assemble(before[-48:], (visible(context.token), "bold reverse"), after[:48])
