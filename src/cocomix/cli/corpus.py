"""Verbs from a text to what a teacher says of it: prepare, sae, label, distill."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.application import AsJson, DataFolder, Output, Quiet, app, print_json
from cocomix.runtime.console import ConsoleReporter
from cocomix.runtime.errors import CoCoMixError

__all__ = ["distill", "label", "prepare", "sae"]


class Engine(Enum):
    """What runs the workers of `cocomix label`."""

    processes = "processes"
    ray = "ray"


@app.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Text files, JSONL or Parquet, folders of these, a Hub data set name, or docs: for the documentation "
            "on this machine.",
        ),
    ],
    output: Output,
    tokenizer: Annotated[str | None, typer.Option(help="Existing tokenizer: Hub name, folder or GGUF file.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Train a byte-level BPE of this size instead.")] = None,
    block_size: Annotated[int, typer.Option(help="Tokens per block.")] = 1024,
    prepend_bos: Annotated[
        bool, typer.Option("--prepend-bos", help="Begin every block with the begin-of-text token, as for Gemma.")
    ] = False,
    blocks_per_shard: Annotated[int, typer.Option(help="Blocks per file, which labelling takes one at a time.")] = 4096,
    validation: Annotated[list[str] | None, typer.Option(help="Source of the validation split; repeatable.")] = None,
    validation_fraction: Annotated[float, typer.Option(help="Share of documents that validates.")] = 0.01,
    text_column: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
    max_bytes: Annotated[int | None, typer.Option(help="Stop after this many bytes of training text.")] = None,
    hf_config: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None,
    hf_split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    hf_revision: Annotated[str | None, typer.Option(help="Commit of a Hub data set.")] = None,
    tokenizer_revision: Annotated[str | None, typer.Option(help="Commit of a Hub tokenizer.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split by document.")] = 0,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn text into packed token blocks.

    [dim]Example: cocomix prepare books/ --tokenizer openai-community/gpt2 --output data/books[/dim]
    """
    from cocomix.data import PrepareSettings
    from cocomix.data import prepare as run

    settings = PrepareSettings(
        sources=tuple(sources),
        validation_sources=tuple(validation or ()),
        validation_fraction=validation_fraction,
        text_column=text_column,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        block_size=block_size,
        prepend_bos=prepend_bos,
        blocks_per_shard=blocks_per_shard,
        max_bytes=max_bytes,
        hf_config=hf_config,
        hf_split=hf_split,
        hf_revision=hf_revision,
        tokenizer_revision=tokenizer_revision,
        seed=seed,
    )
    data = run(settings, output, ConsoleReporter(quiet=quiet))
    if json_output:
        print_json(data.meta.model_dump(mode="json"))


@app.command()
def sae(
    data: DataFolder,
    teacher: Annotated[str, typer.Option(help="Causal language model: Hub name, folder, run or GGUF file.")],
    layer: Annotated[int, typer.Option(help="0-based index of the block whose output is described.")],
    output: Output,
    num_concepts: Annotated[int, typer.Option(help="Latents of the autoencoder (C).")] = 2048,
    k: Annotated[int, typer.Option(help="Active latents per token (K_SAE).")] = 16,
    tokens: Annotated[int, typer.Option(help="Hidden states to train on.")] = 500_000,
    batch_size: Annotated[int, typer.Option(help="Hidden states per step.")] = 1024,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam; by default from the number of latents.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a Hub teacher.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fit a sparse autoencoder to a teacher's layer.

    [dim]Example: cocomix sae data/books --teacher openai-community/gpt2 --layer 5 --output sae/books[/dim]
    """
    from cocomix.concepts import FitSettings
    from cocomix.concepts.sources import TeacherConfig
    from cocomix.labelling.pipeline import fit_on_data

    settings = FitSettings(
        num_concepts=num_concepts, k=k, tokens=tokens, batch_size=batch_size, learning_rate=learning_rate, seed=seed
    )
    source = TeacherConfig(model=teacher, layer=layer, revision=revision)
    report = fit_on_data(data, source, output, settings, ConsoleReporter(quiet=quiet))
    if json_output:
        print_json(report.model_dump(mode="json"))


@app.command()
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
    quiet: Quiet = False,
) -> None:
    """Label tokens with the concepts that matter next.

    An interrupted run goes on at the next shard when the same command is given again.

    [dim]Example: cocomix label data/books --teacher openai-community/gpt2 --dictionary sae/books[/dim]
    """
    from cocomix.cli.label_sources import label_sources
    from cocomix.labelling import RaySettings, ShardPart, finish_labels
    from cocomix.labelling.pipeline import label_data, layer_of_dictionary

    folder, reporter = output or data / "labels", ConsoleReporter(quiet=quiet)
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
        layer_of=layer_of_dictionary,
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


@app.command()
def distill(
    data: DataFolder,
    teacher: Annotated[str, typer.Option(help="Causal language model: Hub name, folder, run or GGUF file.")],
    output: Output,
    top_k: Annotated[int, typer.Option(help="Probabilities kept per token; 4 bytes each.")] = 64,
    revision: Annotated[str | None, typer.Option(help="Commit of a Hub teacher.")] = None,
    bf16: Annotated[bool, typer.Option(help="Run the teacher in bfloat16 instead of float32.")] = False,
    batch_tokens: Annotated[int, typer.Option(help="Tokens per forward pass.")] = 4096,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Store a teacher's likeliest next tokens.

    An interrupted run goes on at the next shard when the same command is given again.

    [dim]Example: cocomix distill data/books --teacher openai-community/gpt2 --output data/books/probabilities[/dim]
    """
    from cocomix.concepts.sources import TeacherConfig
    from cocomix.labelling.pipeline import distill_data

    source = TeacherConfig(model=teacher, layer=0, revision=revision)
    manifest = distill_data(
        data,
        source,
        output,
        top_k=top_k,
        dtype="bfloat16" if bf16 else "float32",
        batch_tokens=batch_tokens,
        reporter=ConsoleReporter(quiet=quiet),
    )
    if json_output:
        print_json(manifest.model_dump(mode="json"))
