"""The verb `atlas`, which makes and reads a run's concept atlas."""

import re
import shlex
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cocomix.cli.options import OtherData, OtherLabels, RunOrExample
from cocomix.cli.printing import Printed, table
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from cocomix.interpret import AtlasManifest, ConceptCard, Context, TokenChanges

_BARS = " ▁▂▃▄▅▆▇█"


def atlas(
    run: RunOrExample,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The atlas; default: RUN_atlas.")] = None,
    search: Annotated[str | None, typer.Option(metavar="TEXT", help="Search a finished atlas.")] = None,
    concept: Annotated[int | None, typer.Option(metavar="ID", help="Show a card of a finished atlas.")] = None,
    tokens: Annotated[int, typer.Option(help="Held-out tokens to read.")] = 200_000,
    effects: Annotated[int, typer.Option(help="Concepts whose effect is measured, most frequent first.")] = 64,
    data: OtherData = None,
    labels: OtherLabels = None,
    name_endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Let a language model name concepts, by chat completion.")
    ] = None,
    name_model: Annotated[str, typer.Option(help="Its name at the endpoint.")] = "default",
    name_count: Annotated[int, typer.Option(help="Concepts it names, most frequent first.")] = 64,
) -> Printed:
    """Make and search an atlas of a run's concepts.

    It tells of every concept, on held-out text: where it shows, how well it is predicted, what it does to the next
    token, and what to call it. Names by an endpoint (key: COCOMIX_NAME_API_KEY) are scored where Delphi is installed.

    [dim]Example: cocomix atlas runs/first; cocomix atlas runs/first --search "return value"[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.interpret import AtlasSettings, ConceptAtlas, NameEndpoint, build_atlas, default_atlas_folder
    from cocomix.runtime.device import default_device

    opened, folder = Run.open(run), output or default_atlas_folder(run)
    if search is None and concept is None:
        endpoint = None if name_endpoint is None else NameEndpoint(name_endpoint, name_model, name_count)
        settings = AtlasSettings(tokens=tokens, effects=effects)
        try:
            made = build_atlas(
                opened, output, settings, device=default_device(), data=data, labels=labels, endpoint=endpoint
            )
        except CoCoMixError as error:
            with suppress(CoCoMixError):  # no atlas there that could be read instead
                ConceptAtlas.open(folder, opened)
                error.add_note(f"the atlas in {folder} is finished: read it with --search TEXT or --concept ID")
            raise
        where = [] if output is None else ["--atlas", str(output)]
        following = shlex.join(["cocomix", "explore", str(run), *where])
        return Printed(made.model_dump(mode="json"), _summary(made), next=following)
    if search is not None and concept is not None:
        raise CoCoMixError("--search and --concept are two questions; ask one at a time.")
    found = ConceptAtlas.open(folder, opened)
    if concept is not None:
        card = found.card(concept)
        return Printed(_card_json(card), _card_table(card))
    hits = found.search(search or "")
    if not hits:
        return Printed([], note=f"no name, word or context of the {found.num_concepts:,} concepts has {search!r} in it")
    rows = ((str(hit.id), hit.name, " ".join(hit.snippet.split())) for hit in hits)
    return Printed([hit._asdict() for hit in hits], table(rows, "concept", "name", "found in"))


def _summary(made: "AtlasManifest") -> Group:
    named = f"{made.endpoint_names:,}, {made.scored_names:,} of them scored"
    seen = table(
        [
            ("held-out tokens read", f"{made.tokens:,}"),
            ("concepts predicted", f"{made.predicted_concepts:,} of {made.num_concepts:,}"),
            ("concepts that are labels", f"{made.label_concepts:,}"),
            ("effects measured", f"{made.effects:,}"),
            *([("names by a language model", named)] if made.endpoint_names else []),
        ]
    )
    head = ("property of tokens", "share", "AUROC, hidden state", "AUROC, best concept", "concept")
    rows = (
        (one.property, f"{one.share:.1%}", f"{one.probe:.3f}", f"{one.concept_auroc:.3f}", str(one.concept))
        for one in made.probes
    )
    return Group(seen, "", table(rows, *head)) if made.probes else Group(seen)


def _card_json(card: "ConceptCard") -> dict[str, object]:
    kinds = ("predicted_contexts", "label_contexts")
    contexts = {kind: [one._asdict() for one in getattr(card, kind)] for kind in kinds}
    return {**asdict(card), "histogram": card.histogram._asdict(), **contexts}


def _card_table(card: "ConceptCard") -> Table:
    """A card as two columns, what and how much."""
    blind = "a blind guess:"
    rows = {
        "concept": f"{card.id}: {card.name} (named from {card.named_from})",
        "words (how much likelier)": _lifts(card.terms),
        "next words (how much likelier)": _lifts(card.next_terms),
        "predicted": f"at {card.density:.2%} of positions ({card.predicted_count:,})",
        "label": card.label_density and f"at {card.label_density:.2%} of labelled positions ({card.label_count:,})",
        "precision": card.precision is not None and f"{card.precision:.1%} ({blind} {card.label_density:.1%})",
        "recall": card.recall is not None and f"{card.recall:.1%} ({blind} {card.density:.1%})",
        "AUROC": card.auroc is not None and f"{card.auroc:.3f} ({blind} 0.5)",
        "logit": card.max_logit is not None and f"mean {card.mean_logit:.2f}, largest {card.max_logit:.2f}",
        "logits, histogram": card.predicted_count
        and f"{card.histogram.edges[0]:.1f} {_bars(card.histogram.counts)} {card.histogram.edges[-1]:.1f}",
        "name's scores": card.detection is not None
        and card.fuzzing is not None
        and f"detection {card.detection:.0%}, fuzzing {card.fuzzing:.0%} ({blind} 50%)",
        "raises (nats)": _changes(card.raised),
        "lowers (nats)": _changes(card.lowered),
        "nearest (cosine)": ", ".join(f"{concept} ({cosine:.2f})" for concept, cosine in card.nearest),
    }
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows.items():
        if value:  # what was not seen or measured is left out
            made.add_row(name, Text(str(value)))
    for name, contexts in (("predicted", card.predicted_contexts), ("label", card.label_contexts)):
        for context in contexts:
            made.add_row(f"{name}, quantile {context.quantile:.2f}, logit {context.strength:.3g}", _context(context))
    return made


def _lifts(words: "TokenChanges") -> str:
    return ", ".join(f"{word} (×{lift:.1f})" for word, lift in words)


def _changes(changes: "TokenChanges | None") -> str:
    from cocomix.interpret import visible

    return ", ".join(f"{visible(token)} ({nats:+.3f})" for token, nats in changes or ())


def _bars(counts: tuple[int, ...]) -> str:
    """Counts as bars, the tallest for the largest; a count above 0 is never empty."""
    largest = max(counts)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // largest) if largest else 0] for count in counts)


def _context(context: "Context") -> Text:
    from cocomix.interpret import visible

    before, after = (re.sub(r"\s+", " ", part) for part in (context.before, context.after))
    return Text.assemble(before[-48:], (visible(context.token), "bold reverse"), after[:48])
