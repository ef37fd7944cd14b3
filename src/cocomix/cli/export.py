"""The verb that gives a run away: export."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from cocomix.cli.options import OtherData, Output, RunFolder
from cocomix.cli.printing import Printed
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)


def export(
    run: RunFolder,
    output: Output,
    to: Annotated[
        Literal["transformers", "decoder", "neuronpedia", "delphi", "datasets"],
        typer.Option(
            help="transformers: the model. decoder: of a run with mixing: none, the plain decoder alone. datasets: RUN "
            "is labels. Others: concepts, from atlas or held-out text."
        ),
    ] = "transformers",
    atlas: Annotated[Path | None, typer.Option(help="With neuronpedia: the atlas; default: RUN_atlas.")] = None,
    tokens: Annotated[int | None, typer.Option(help="With delphi: held-out tokens to read; default: 200,000.")] = None,
    data: OtherData = None,
    license: Annotated[
        str | None, typer.Option(help="Licence of weights or text as the hub names it, e.g. mit.")
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="Language of the text, e.g. en; repeatable.")] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Also upload it to this hub repository.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a repository that --push makes.")] = False,
) -> Printed:
    """Write a run, its concepts or its labels for other tools.

    A model's folder holds weights, tokenizer, a model card filled from the run, and the code of its classes. It loads
    with AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True) where cocomix is not installed.

    [dim]Example: cocomix export runs/first --license mit --output exports/first[/dim]

    [dim]Example: cocomix export runs/first --output exports/first --push me/first[/dim]

    [dim]Example: cocomix export runs/unmixed --to decoder --output exports/unmixed[/dim]

    [dim]Example: cocomix export runs/first --to neuronpedia --output exports/neuronpedia[/dim]

    [dim]Example: cocomix export data/mine/labels --to datasets --output exports/labels --push me/labels[/dim]
    """
    from cocomix import interop

    of_repository = {"--license": license, "--language": language, "--push": push, "--public": public or None}
    asked = {**of_repository, "--atlas": atlas, "--tokens": tokens, "--data": data}
    taken = {
        "transformers": of_repository.keys(),
        "decoder": of_repository.keys(),
        "neuronpedia": {"--atlas", "--data"},
        "delphi": {"--tokens", "--data"},
        "datasets": {*of_repository, "--data"},
    }
    for option, value in asked.items():
        if value is not None and option not in taken[to]:
            raise CoCoMixError(f"{option} cannot be used with --to {to}; leave it out.")
    if to == "neuronpedia":
        source = interop.export_neuronpedia(run, output, atlas=atlas, data=data)
        logger.info(f"features, activations and explanations for Neuronpedia are in {source}")
        return Printed({"folder": str(source), "repository": None})
    if to == "delphi":
        interop.export_delphi(run, output, tokens=200_000 if tokens is None else tokens, data=data)
        logger.info(f'read it with delphi.latents.LatentDataset("{output}", …)')
        return Printed({"folder": str(output), "repository": None})
    if public and push is None:
        raise CoCoMixError("--public is about the repository of --push; name one, or leave it out.")
    if push is not None:
        interop.check_hub_access(push)
    languages = tuple(language or ())
    if to == "datasets":
        interop.export_labels(run, output, data=data, license=license, languages=languages)
        logger.info(f'read it with datasets.load_dataset("{output}")')
    else:
        interop.export_run(run, output, decoder=to == "decoder", license=license, languages=languages)
        trusted = ", trust_remote_code=True" if any(output.glob("*.py")) else ""
        logger.info(f'read it with AutoModelForCausalLM.from_pretrained("{output}"{trusted})')
    kind: Literal["dataset", "model"] = "dataset" if to == "datasets" else "model"
    address = None if push is None else interop.push_to_hub(output, push, private=not public, kind=kind)
    return Printed({"folder": str(output), "repository": address})
