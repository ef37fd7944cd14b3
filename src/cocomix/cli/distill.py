"""The verb `distill`."""

from typing import Annotated, Any, Literal

import typer

from cocomix.cli.job_options import Blocks, JobOptions, asked_of
from cocomix.cli.options import DataFolder, Output, Revision, Teacher
from cocomix.cli.printing import Printed


def distill(
    data: DataFolder,
    teacher: Teacher,
    output: Output,
    kind: Annotated[
        Literal["auto", "top_k", "first_token", "uld", "alm"],
        typer.Option(help="auto: top_k with the data's tokenizer, first_token with another one; see below."),
    ] = "auto",
    top_k: Annotated[
        int | None, typer.Option(help="Probabilities kept per token, 4 bytes each. Default: 64 of top_k, 32 of others.")
    ] = None,
    revision: Revision = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Teacher's arithmetic; auto: bfloat16 where the machine is fast in it."),
    ] = "auto",
    blocks: Blocks = None,
    *,
    options: JobOptions,
) -> Printed:
    """Store a teacher's likeliest next tokens.

    A teacher may have another tokenizer than the data. It is then aligned by bytes, and where a token of both ends,
    first_token adds up the probabilities of the teacher's tokens that begin with the same token of the data (within a
    token of the teacher, of those that go on with it); uld stores the teacher's largest probabilities without their
    tokens, and alm the likelihood of the text up to the next such place.

    A command that was stopped goes on with what is left when it is given again.

    [dim]Example: cocomix distill data/books --teacher openai-community/gpt2 --output data/books/probabilities[/dim]
    """
    from cocomix import labelling  # whose names are imported when they are used: a finished folder needs no PyTorch
    from cocomix.concepts import TeacherConfig

    settings: dict[str, Any] = {"kind": kind, "top_k": top_k, "dtype": dtype, "blocks": blocks}
    asked = asked_of(teacher=teacher, revision=revision, batch_tokens=options.batch_tokens, **settings)
    found = labelling.recognised(labelling.TeacherProbabilities, output, data, asked)
    if found is None:
        source = TeacherConfig(model=teacher, layer=0, revision=revision)
        found = labelling.distill_data(data, source, output, job=options.job(asked), **settings)
    return Printed({"finished": False} if found is None else found.manifest.model_dump(mode="json"))
