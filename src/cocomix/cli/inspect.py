"""The verb `inspect`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cocomix.cli.options import RunOrExample
from cocomix.cli.printing import Printed, table
from cocomix.runtime.console import progress

if TYPE_CHECKING:
    from cocomix.evaluation import Run


def inspect(
    run: RunOrExample,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to look at.")],
    top: Annotated[int, typer.Option(help="Concepts per token.")] = 3,
    describe: Annotated[
        bool, typer.Option(help="Name concepts: by the atlas beside the run, else by words at their labels.")
    ] = True,
) -> Printed:
    """Show the concepts predicted at every token.

    [dim]Example: cocomix inspect runs/first "Return the number of items."[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.interpret import inspect_text, visible

    opened = Run.open(run)
    with progress("looking", None, "steps"):
        tokens = inspect_text(opened.model(), opened.tokenizer(), text, top=top)
        wanted = sorted({concept.id for token in tokens for concept in token.concepts})
        names = _names(opened, wanted) if describe else {}
    said = {concept: name for concept, name in names.items() if name != f"concept {concept}"}
    rows = (
        (
            visible(token.token),
            ", ".join(
                f"{one.id} ({one.logit:.2f})" + (f" [{said[one.id]}]" if one.id in said else "")
                for one in token.concepts
            ),
            ", ".join(f"{visible(one.token)} ({one.probability:.0%})" for one in token.next_tokens),
        )
        for token in tokens
    )
    found = [asdict(token) for token in tokens]
    for concept in (concept for token in found for concept in token["concepts"]):
        concept["name"] = names.get(concept["id"])
    return Printed(found, table(rows, "token", "concepts (logit)", "next token (probability)"))


def _names(run: "Run", concepts: list[int]) -> dict[int, str]:
    from cocomix.interpret import ConceptAtlas, default_atlas_folder, describe_run_concepts

    if (folder := default_atlas_folder(run.path)).is_dir():
        atlas = ConceptAtlas.open(folder, run)
        return {concept: atlas.name(concept) for concept in concepts}
    return {concept: described.name for concept, described in describe_run_concepts(run, concepts).items()}
