"""The verb that makes and reads a run's concept atlas: atlas."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import OtherData, OtherLabels, RunFolder
from cocomix.cli.printing import Printed
from cocomix.runtime.errors import CoCoMixError

__all__ = ["atlas"]


def atlas(
    run: RunFolder,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The atlas; default: RUN_atlas.")] = None,
    search: Annotated[str | None, typer.Option(metavar="TEXT", help="Search a finished atlas.")] = None,
    concept: Annotated[int | None, typer.Option(metavar="ID", help="Show a card of a finished atlas.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read, validation first.")] = 200_000,
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

    It tells of every concept where it shows, what it does to the next token, and what to call it.

    A stopped command goes on where it was. The key of a naming endpoint is read from COCOMIX_NAME_API_KEY.

    [dim]Example: cocomix atlas runs/first; cocomix atlas runs/first --search "return value"[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.interpret import AtlasSettings, ConceptAtlas, NameEndpoint, build_atlas, default_atlas_folder
    from cocomix.interpret.atlas_tables import card_table, hits_table
    from cocomix.runtime.device import default_device

    opened = Run.open(run)
    if search is None and concept is None:
        endpoint = None if name_endpoint is None else NameEndpoint(name_endpoint, name_model, name_count)
        record = build_atlas(
            opened,
            output,
            AtlasSettings(tokens=tokens, effects=effects),
            device=default_device(),
            data=data,
            labels=labels,
            endpoint=endpoint,
        )
        return Printed(record.model_dump(mode="json"))
    if search is not None and concept is not None:
        raise CoCoMixError("--search and --concept are two questions; ask one at a time.")
    with ConceptAtlas.open(output or default_atlas_folder(run), opened) as found:
        if concept is not None:
            card = found.card(concept)
            return Printed(asdict(card), card_table(card))
        hits = found.search(search or "")
        return Printed([asdict(hit) for hit in hits], hits_table(hits))
