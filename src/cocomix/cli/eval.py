"""The verb `eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cocomix.cli.options import BatchBlocks, OtherData, OtherLabels, RunFolder
from cocomix.cli.printing import Printed, table, values_table
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from rich.table import Table

    from cocomix.evaluation import RunEvaluation

__all__ = ["evaluate"]


def evaluate(
    run: RunFolder,
    data: OtherData = None,
    labels: OtherLabels = None,
    batch_size: BatchBlocks = 8,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16 instead of float32.")] = False,
    limit_blocks: Annotated[int | None, typer.Option(help="Use only the first blocks.")] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Tokens of a block; default: as in training. Longer blocks are cut.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Measure downstream tasks instead; `paper` = the paper's seven."),
    ] = None,
    task_data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with A.jsonl, B.jsonl, …; default: the tasks' hub data.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first rows of each task.")] = None,
) -> Printed:
    """Measure a run's loss and use of concepts, or tasks.

    Losses by token, n-gram references, concept recall and reliance go to the run's folder `evaluations`.

    [dim]Example: cocomix eval runs/first[/dim]

    [dim]Example: cocomix eval runs/first --tasks lambada_openai,piqa --task-data benchmarks[/dim]
    """
    import torch

    from cocomix.evaluation import Run, evaluate_run, evaluate_tasks, warn_if_worse_than_bigram
    from cocomix.runtime.device import default_device

    dtype = torch.bfloat16 if bf16 else torch.float32
    if tasks is not None:
        opened = Run.open(run)
        downstream = evaluate_tasks(
            opened,
            tasks.split(","),
            device=default_device(),
            task_data=task_data,
            batch_size=batch_size,
            dtype=dtype,
            limit=limit,
        )
        return Printed(downstream.model_dump(), values_table(downstream.summary()))
    if task_data is not None or limit is not None:
        raise CoCoMixError("--task-data and --limit are for downstream tasks; name them with --tasks.")
    result = evaluate_run(
        Run.open(run),
        device=default_device(),
        data=data,
        labels=labels,
        batch_size=batch_size,
        dtype=dtype,
        limit_blocks=limit_blocks,
        block_size=block_size,
    )
    warn_if_worse_than_bigram(result.run, result.loss, result.references)
    return Printed(result.model_dump(mode="json"), evaluation_table(result))


def evaluation_table(result: "RunEvaluation") -> "Table":
    """What people read of an evaluation: losses beside their references, recall beside its own, reliance."""
    from cocomix.evaluation.formatting import NOTHING, percent, signed

    rows = [(f"{result.run}, seed {result.seed}", f"{result.loss:.4f}")]
    if result.references is not None:
        references = result.references
        rows += [
            (f"{order} table", f"{getattr(references, order):.4f}")
            for order in ("fourgram", "trigram", "bigram", "unigram")
        ]
    rows.append(("perplexity", f"{result.perplexity:.2f}"))
    rows.append(("bits per byte", NOTHING if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"))
    rows.append(("predicted tokens", f"{result.targets:,}"))
    if (concepts := result.concepts) is not None:
        rows.append(("concepts predicted", f"{concepts.concepts_predicted:,} of {concepts.num_concepts:,}"))
        if concepts.recall_at_32 is not None:
            rows.append(("concept recall@32", percent(concepts.recall_at_32)))
    if result.reliance is not None:
        rows += [(f"loss with {kind}", signed(each.nats)) for kind, each in result.reliance.kinds.items()]
    if result.reliance_note is not None:
        rows.append(("reliance", result.reliance_note))
    return table(rows, "measured", "nats per token")
