"""The verb `distill`."""

from typing import Annotated

import typer

from cocomix.cli.options import AsJson, DataFolder, Output
from cocomix.cli.printing import print_json
from cocomix.runtime.console import ConsoleReporter

__all__ = ["distill"]


def distill(
    data: DataFolder,
    teacher: Annotated[str, typer.Option(help="Causal language model: Hub name, folder, run or GGUF file.")],
    output: Output,
    top_k: Annotated[int, typer.Option(help="Probabilities kept per token; 4 bytes each.")] = 64,
    revision: Annotated[str | None, typer.Option(help="Commit of a Hub teacher.")] = None,
    bf16: Annotated[bool, typer.Option(help="Run the teacher in bfloat16 instead of float32.")] = False,
    batch_tokens: Annotated[int, typer.Option(help="Tokens per forward pass.")] = 4096,
    json_output: AsJson = False,
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
        reporter=ConsoleReporter(),
    )
    if json_output:
        print_json(manifest.model_dump(mode="json"))
