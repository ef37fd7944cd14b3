"""The verb `inspect`."""

from dataclasses import asdict
from typing import Annotated

import typer

from cocomix.cli.options import RunFolder
from cocomix.cli.printing import Printed, table
from cocomix.runtime.console import progress

__all__ = ["inspect"]


def inspect(
    run: RunFolder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to look at.")],
    top: Annotated[int, typer.Option(help="Concepts per token.")] = 3,
    describe: Annotated[bool, typer.Option(help="Name concepts by the words of highest lift at their labels.")] = True,
) -> Printed:
    """Show the concepts predicted at every token.

    [dim]Example: cocomix inspect runs/first "Return the number of items."[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.interpret import describe_run_concepts, inspect_text, visible

    opened = Run.open(run)
    with progress("looking", None, "steps"):
        tokens = inspect_text(opened.model(), opened.tokenizer(), text, top=top)
        wanted = sorted({concept.id for token in tokens for concept in token.concepts})
        names = {one: about.name for one, about in (describe_run_concepts(opened, wanted) if describe else {}).items()}
    rows = (
        (
            visible(token.token),
            ", ".join(
                f"{one.id} ({one.logit:.2f})" + (f" [{names[one.id]}]" if one.id in names else "")
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
