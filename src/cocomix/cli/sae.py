"""The verb `sae`."""

import shlex
from typing import Annotated, Literal

import typer

from cocomix.cli.options import DataFolder, Output, Revision, Teacher
from cocomix.cli.printing import Printed


def sae(
    data: DataFolder,
    teacher: Teacher,
    layer: Annotated[int, typer.Option(help="0-based index of the block whose output is described.")],
    output: Output,
    num_concepts: Annotated[int, typer.Option(help="Latents of the autoencoder (C).")] = 2048,
    k: Annotated[int, typer.Option(help="Active latents per token (K_SAE).")] = 16,
    tokens: Annotated[int, typer.Option(help="Hidden states to train on.")] = 500_000,
    batch_size: Annotated[int, typer.Option(help="Hidden states per step.")] = 1024,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam; by default from the number of latents.")] = None,
    revision: Revision = None,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Teacher's arithmetic; auto: bfloat16 where the machine is fast in it."),
    ] = "float32",
) -> Printed:
    """Fit a sparse autoencoder to a teacher's layer.

    [dim]Example: cocomix sae data/books --teacher openai-community/gpt2 --layer 5 --output sae/books[/dim]
    """
    from cocomix.concepts import FitSettings, TeacherConfig
    from cocomix.experiments import next_step
    from cocomix.labelling import fit_on_data, fitted

    settings = FitSettings(
        num_concepts=num_concepts,
        k=k,
        tokens=tokens,
        batch_size=batch_size,
        learning_rate=learning_rate,
        dtype=dtype,
        seed=seed,
    )
    source = TeacherConfig(model=teacher, layer=layer, revision=revision)
    if (dictionary := fitted(data, source, output, settings)) is None:
        from cocomix.runtime.device import choose_threads

        choose_threads()
        dictionary = fit_on_data(data, source, output, settings)
    following = shlex.join(["cocomix", "label", str(data), "--teacher", teacher, "--dictionary", str(output)])
    return Printed(dictionary.manifest.model_dump(mode="json"), next=next_step(output) or following)
