"""The verb `label`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.job_options import (
    Address,
    BatchTokens,
    CpusPerWorker,
    Engine,
    Finish,
    GpusPerWorker,
    Part,
    Retries,
    UnitTokens,
    Where,
    Workers,
    asked_of,
    executor_of,
)
from cocomix.cli.options import DataFolder
from cocomix.cli.printing import Printed
from cocomix.runtime.errors import CoCoMixError

__all__ = ["label"]


class Scores(Enum):
    """In which type scores are kept."""

    none = "none"
    float16 = "float16"
    float32 = "float32"


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
    scores: Annotated[
        Scores | None, typer.Option(help="Type in which scores are kept, default float16; none halves the room.")
    ] = None,
    batch_tokens: BatchTokens = 4096,
    unit_tokens: UnitTokens = None,
    workers: Workers = None,
    shard: Part = None,
    finish: Finish = False,
    engine: Where = Engine.processes,
    address: Address = None,
    gpus_per_worker: GpusPerWorker = None,
    cpus_per_worker: CpusPerWorker = 1,
    retries: Retries = 2,
    force: Annotated[
        bool, typer.Option(help="Use a dictionary that does not fit the layer, or a dtype that changes labels.")
    ] = False,
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
        scores=scores and scores.value,
        batch_tokens=batch_tokens,
    )
    found = recognised(Labels, folder, data, asked)
    if finish and shard is not None:
        raise CoCoMixError("--shard labels a part and --finish completes the folder; give one of them.")
    if finish and found is None:
        from cocomix.labelling import finish as complete

        found = complete(Labels, folder)
    if found is None:
        from cocomix.cli.label_sources import label_sources
        from cocomix.concepts import dictionary_layer
        from cocomix.labelling import Job, label_data

        executor = executor_of(workers, shard, engine, address, gpus_per_worker, cpus_per_worker)
        config, kept = label_sources(
            recipe,
            teacher=teacher,
            dictionary=dictionary,
            sae_id=sae_id,
            layer=layer,
            revision=revision,
            assignments=assignments or (),
            layer_of=dictionary_layer,
        )
        job = Job(batch_tokens, unit_tokens, executor, retries, asked)
        found = label_data(data, config, folder, scores=scores.value if scores else kept, force=force, job=job)
    return Printed({"finished": False} if found is None else found.manifest.model_dump(mode="json"))
