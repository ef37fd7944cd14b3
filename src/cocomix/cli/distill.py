"""The verb `distill`."""

from typing import Annotated, Literal

import typer

from cocomix.cli.job_options import Blocks, JobOptions, asked_of
from cocomix.cli.options import DataFolder, Output, Revision, Teacher
from cocomix.cli.printing import Printed

__all__ = ["distill"]


def distill(
    data: DataFolder,
    teacher: Teacher,
    output: Output,
    top_k: Annotated[int, typer.Option(help="Probabilities kept per token; 4 bytes each.")] = 64,
    revision: Revision = None,
    bf16: Annotated[bool, typer.Option(help="Run the teacher in bfloat16 instead of float32.")] = False,
    blocks: Blocks = None,
    *,
    options: JobOptions,
) -> Printed:
    """Store a teacher's likeliest next tokens.

    A command that was stopped goes on with what is left when it is given again.

    [dim]Example: cocomix distill data/books --teacher openai-community/gpt2 --output data/books/probabilities[/dim]
    """
    from cocomix.labelling import TeacherProbabilities, recognised

    asked = asked_of(teacher=teacher, top_k=top_k, revision=revision, bf16=bf16, batch_tokens=options.batch_tokens)
    asked |= {} if blocks is None else {"blocks": blocks}
    found = recognised(TeacherProbabilities, output, data, asked)
    if found is None:
        from cocomix.concepts import TeacherConfig
        from cocomix.labelling import distill_data

        source = TeacherConfig(model=teacher, layer=0, revision=revision)
        dtype: Literal["bfloat16", "float32"] = "bfloat16" if bf16 else "float32"
        job = options.job(asked)
        found = distill_data(data, source, output, top_k=top_k, dtype=dtype, blocks=blocks, job=job)
    return Printed({"finished": False} if found is None else found.manifest.model_dump(mode="json"))
