"""The verb `label`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import AsJson, DataFolder
from cocomix.cli.printing import print_json
from cocomix.runtime.console import ConsoleReporter
from cocomix.runtime.errors import CoCoMixError

__all__ = ["label"]


class Engine(Enum):
    """What runs the workers of `cocomix label`."""

    processes = "processes"
    ray = "ray"


def label(
    data: DataFolder,
    recipe: Annotated[Path | None, typer.Option(help="Take teacher, dictionary and attribution from a recipe.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Causal language model: Hub name, folder or GGUF file.")] = None,
    dictionary: Annotated[str | None, typer.Option(help="SAELens release, or folder of an autoencoder.")] = None,
    sae_id: Annotated[str | None, typer.Option(help="Which autoencoder of a release.")] = None,
    layer: Annotated[int | None, typer.Option(help="Block it describes; default: as `cocomix sae` noted.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a Hub teacher.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write; default DATA/labels.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="k, selection, activation, gradient, sign, seed or dtype."),
    ] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens per forward pass.")] = 4096,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes: one per GPU, or sharing the cores. With Ray, tasks at once.")
    ] = 1,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Label part I of N, from 0; parts share a folder and may run at once."),
    ] = None,
    finish: Annotated[bool, typer.Option("--finish", help="Complete a folder whose parts are all labelled.")] = False,
    engine: Annotated[Engine, typer.Option(help="Where the workers are.")] = Engine.processes,
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT; default: start one here."),
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="GPUs of a Ray task, also 0.5; default: 1 if the cluster has any.")
    ] = None,
    cpus_per_worker: Annotated[int, typer.Option(help="CPU cores of a Ray task.")] = 1,
    retries: Annotated[int, typer.Option(help="How often Ray tries a shard again whose worker died.")] = 3,
    force: Annotated[
        bool, typer.Option(help="Use a dictionary that does not fit the layer, or a dtype that changes labels.")
    ] = False,
    json_output: AsJson = False,
) -> None:
    """Label tokens with the concepts that matter next.

    An interrupted run goes on at the next shard when the same command is given again.

    [dim]Example: cocomix label data/books --teacher openai-community/gpt2 --dictionary sae/books[/dim]
    """
    from cocomix.cli.label_sources import label_sources
    from cocomix.concepts import dictionary_layer
    from cocomix.labelling import RaySettings, ShardPart, finish_labels
    from cocomix.labelling.pipeline import label_data

    folder, reporter = output or data / "labels", ConsoleReporter()
    if finish:
        if shard is not None:
            raise CoCoMixError("--shard labels a part and --finish completes the folder; give one of them.")
        finished = finish_labels(folder, reporter)
        if json_output:
            print_json(finished.model_dump(mode="json"))
        return
    on_ray = engine is Engine.ray
    if not on_ray and (address is not None or gpus_per_worker is not None):
        raise CoCoMixError("--address and --gpus-per-worker are for a Ray cluster; add --engine ray.")
    part = None if shard is None else ShardPart.parse(shard)
    ray = RaySettings(address, gpus_per_worker, cpus_per_worker, retries) if on_ray else None
    sources = label_sources(
        recipe,
        teacher=teacher,
        dictionary=dictionary,
        sae_id=sae_id,
        layer=layer,
        revision=revision,
        assignments=assignments or (),
        layer_of=dictionary_layer,
    )
    manifest = label_data(
        data,
        sources.teacher,
        sources.dictionary,
        folder,
        sources.settings,
        force=force,
        batch_tokens=batch_tokens,
        workers=workers,
        ray=ray,
        part=part,
        reporter=reporter,
    )
    if json_output:
        print_json({"finished": False} if manifest is None else manifest.model_dump(mode="json"))
