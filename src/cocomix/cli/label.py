"""The verb `label`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cocomix.cli.job_options import JobOptions, asked_of
from cocomix.cli.options import DataFolder, Revision
from cocomix.cli.printing import Printed
from cocomix.runtime.errors import CoCoMixError

__all__ = ["label"]


def label(
    data: DataFolder,
    recipe: Annotated[Path | None, typer.Option(help="Take from a recipe how labels are made.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Causal language model: Hub name, folder or GGUF file.")] = None,
    dictionary: Annotated[str | None, typer.Option(help="SAELens release, or folder of an autoencoder.")] = None,
    sae_id: Annotated[str | None, typer.Option(help="Which autoencoder of a release.")] = None,
    layer: Annotated[int | None, typer.Option(help="Block it describes; default: as `cocomix sae` noted.")] = None,
    revision: Revision = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write; default DATA/labels.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="kind, k, activation, gradient, sign, seed, dtype …"),
    ] = None,
    scores: Annotated[
        Literal["none", "float16", "float32"],
        typer.Option(help="Type in which scores are kept; none halves the room."),
    ] = "float16",
    finish: Annotated[bool, typer.Option("--finish", help="Complete a folder whose parts are all computed.")] = False,
    force: Annotated[
        bool, typer.Option(help="Use a dictionary that does not fit the layer, or a dtype that changes labels.")
    ] = False,
    *,
    options: JobOptions,
) -> Printed:
    """Label tokens with the concepts that matter next.

    A command that was stopped goes on with what is left when it is given again.

    [dim]Example: cocomix label data/books --teacher openai-community/gpt2 --dictionary sae/books[/dim]
    """
    from cocomix.labelling import Labels, recognised

    folder = output or data / "labels"
    asked = asked_of(
        recipe=recipe,
        teacher=teacher,
        dictionary=dictionary,
        sae_id=sae_id,
        layer=layer,
        revision=revision,
        set=assignments,
        scores=scores,
        batch_tokens=options.batch_tokens,
    )
    found = recognised(Labels, folder, data, asked)
    if finish and options.shard is not None:
        raise CoCoMixError("--shard labels a part and --finish completes the folder; give one of them.")
    if finish and found is None:
        from cocomix.labelling import finish as complete

        found = complete(Labels, folder)
    if found is None:
        from cocomix.cli.label_sources import label_sources
        from cocomix.concepts import dictionary_layer
        from cocomix.labelling import label_data

        job = options.job(asked)
        config = label_sources(
            recipe,
            teacher=teacher,
            dictionary=dictionary,
            sae_id=sae_id,
            layer=layer,
            revision=revision,
            assignments=assignments or (),
            layer_of=dictionary_layer,
        )
        found = label_data(data, config, folder, scores=scores, force=force, job=job)
    return Printed({"finished": False} if found is None else found.manifest.model_dump(mode="json"))
