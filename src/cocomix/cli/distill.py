"""The verb `distill`."""

from typing import Annotated

import typer

from cocomix.cli.job_options import (
    Address,
    BatchTokens,
    CpusPerWorker,
    Engine,
    GpusPerWorker,
    Part,
    Retries,
    UnitTokens,
    Where,
    Workers,
    asked_of,
    executor_of,
)
from cocomix.cli.options import DataFolder, Output
from cocomix.cli.printing import Printed

__all__ = ["distill"]


def distill(
    data: DataFolder,
    teacher: Annotated[str, typer.Option(help="Causal language model: Hub name, folder, run or GGUF file.")],
    output: Output,
    top_k: Annotated[int, typer.Option(help="Probabilities kept per token; 4 bytes each.")] = 64,
    revision: Annotated[str | None, typer.Option(help="Commit of a Hub teacher.")] = None,
    bf16: Annotated[bool, typer.Option(help="Run the teacher in bfloat16 instead of float32.")] = False,
    batch_tokens: BatchTokens = 4096,
    unit_tokens: UnitTokens = None,
    workers: Workers = None,
    shard: Part = None,
    engine: Where = Engine.processes,
    address: Address = None,
    gpus_per_worker: GpusPerWorker = None,
    cpus_per_worker: CpusPerWorker = 1,
    retries: Retries = 2,
) -> Printed:
    """Store a teacher's likeliest next tokens.

    A command that was stopped goes on with what is left when it is given again.

    [dim]Example: cocomix distill data/books --teacher openai-community/gpt2 --output data/books/probabilities[/dim]
    """
    from cocomix.labelling import TeacherProbabilities, recognised

    asked = asked_of(teacher=teacher, top_k=top_k, revision=revision, bf16=bf16, batch_tokens=batch_tokens)
    found = recognised(TeacherProbabilities, output, data, asked)
    if found is None:
        from cocomix.concepts import TeacherConfig
        from cocomix.labelling import Job, distill_data

        executor = executor_of(workers, shard, engine, address, gpus_per_worker, cpus_per_worker)
        job = Job(batch_tokens, unit_tokens, executor, retries, asked)
        source = TeacherConfig(model=teacher, layer=0, revision=revision)
        found = distill_data(data, source, output, top_k=top_k, dtype="bfloat16" if bf16 else "float32", job=job)
    return Printed({"finished": False} if found is None else found.manifest.model_dump(mode="json"))
