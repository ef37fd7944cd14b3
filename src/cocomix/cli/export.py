"""The verb that gives a run away: export."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cocomix.cli.options import OtherData, Output, RunFolder
from cocomix.cli.printing import Printed
from cocomix.runtime.errors import CoCoMixError

__all__ = ["export"]


def export(
    run: RunFolder,
    output: Output,
    to: Annotated[
        Literal["transformers", "neuronpedia"],
        typer.Option(help="transformers: the model. neuronpedia: its concepts, from its atlas."),
    ] = "transformers",
    atlas: Annotated[Path | None, typer.Option(help="With neuronpedia: the atlas; default: RUN_atlas.")] = None,
    data: OtherData = None,
    license: Annotated[str | None, typer.Option(help="Licence of the weights as the hub names it, e.g. mit.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Language of the text, e.g. en; repeatable.")] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Also upload it to this hub repository."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a repository that --push makes.")] = False,
) -> Printed:
    """Write a run for other tools: as a model that needs transformers alone, or its concepts for Neuronpedia.

    A model's folder holds weights, tokenizer, a model card filled from the run, and the code of its classes. It loads
    with AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True) where cocomix is not installed.

    [dim]Example: cocomix export runs/first --license mit --output exports/first[/dim]

    [dim]Example: cocomix export runs/first --output exports/first --push me/first[/dim]

    [dim]Example: cocomix export runs/first --to neuronpedia --output exports/neuronpedia[/dim]
    """
    from cocomix.interop import check_hub_access, export_neuronpedia, export_run, push_to_hub
    from cocomix.runtime.device import default_device

    of_models = {"--license": license, "--language": language, "--push": push, "--public": public}
    of_concepts = {"--atlas": atlas, "--data": data}
    for option, value in (of_concepts if to == "transformers" else of_models).items():
        if value:
            raise CoCoMixError(f"{option} cannot be used with --to {to}; leave it out.")
    if to == "neuronpedia":
        source = export_neuronpedia(run, output, atlas=atlas, data=data, device=default_device())
        return Printed({"folder": str(source), "repository": None})
    if public and push is None:
        raise CoCoMixError("--public is about the repository of --push; name one, or leave it out.")
    if push is not None:
        check_hub_access(push)
    export_run(run, output, license=license, languages=tuple(language or ()))
    address = None if push is None else push_to_hub(output, push, private=not public)
    return Printed({"folder": str(output), "repository": address})
