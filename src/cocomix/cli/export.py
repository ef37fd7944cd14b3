"""The verb that gives a run away: export."""

from typing import Annotated

import typer

from cocomix.cli.options import Output, RunFolder
from cocomix.cli.printing import Printed
from cocomix.runtime.errors import CoCoMixError

__all__ = ["export"]


def export(
    run: RunFolder,
    output: Output,
    license: Annotated[str | None, typer.Option(help="Licence of the weights as the hub names it, e.g. mit.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Language of the text, e.g. en; repeatable.")] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Also upload it to this hub repository."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a repository that --push makes.")] = False,
) -> Printed:
    """Write a run as a model that needs transformers alone.

    The folder holds weights, tokenizer, a model card filled from the run, and the code of its classes: it loads with
    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True) where cocomix is not installed.

    [dim]Example: cocomix export runs/first --license mit --output exports/first[/dim]

    [dim]Example: cocomix export runs/first --output exports/first --push me/first[/dim]
    """
    from cocomix.interop import check_hub_access, export_run, push_to_hub

    if public and push is None:
        raise CoCoMixError("--public is about the repository of --push; name one, or leave it out.")
    if push is not None:
        check_hub_access(push)
    export_run(run, output, license=license, languages=tuple(language or ()))
    address = None if push is None else push_to_hub(output, push, private=not public)
    return Printed({"folder": str(output), "repository": address})
