"""The verb `inspect`."""

from dataclasses import asdict
from typing import Annotated

import typer

from cocomix.cli.options import RunFolder
from cocomix.cli.printing import Printed
from cocomix.runtime.console import progress

__all__ = ["inspect"]


def inspect(
    run: RunFolder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to look at.")],
    top: Annotated[int, typer.Option(help="Concepts per token.")] = 3,
    describe: Annotated[bool, typer.Option(help="Say what concepts stand for, from the run's labels.")] = True,
) -> Printed:
    """Show the concepts predicted at every token.

    [dim]Example: cocomix inspect runs/first "Return the number of items."[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.interpret import inspect_text, render_table
    from cocomix.interpret.run_concepts import describe_run_concepts

    opened = Run.open(run)
    with progress("looking", None, "steps"):
        tokens = inspect_text(opened.model(), opened.tokenizer(), text, top=top)
        wanted = sorted({concept.id for token in tokens for concept in token.concepts})
        descriptions = describe_run_concepts(opened, wanted) if describe else {}
    return Printed([asdict(token) for token in tokens], render_table(tokens, descriptions))
