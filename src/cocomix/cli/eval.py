"""The verb `eval`."""

import logging
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from cocomix.cli.options import BatchBlocks, OtherData, OtherLabels, RunFolder
from cocomix.cli.printing import Printed
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)


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
        typer.Option(
            metavar="A,B,…",
            help="Measure downstream tasks instead; `paper` = the paper's seven; `minimal_pairs` of held-out text.",
        ),
    ] = None,
    task_data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with A.jsonl, B.jsonl, …; default: the tasks' hub data.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use only the first rows of each task; of minimal pairs so many of a kind.")
    ] = None,
) -> Printed:
    """Measure a run's loss and use of concepts, or tasks.

    Losses by token, n-gram references, concept recall and reliance go to the run's folder `evaluations`.

    [dim]Example: cocomix eval runs/first[/dim]

    [dim]Example: cocomix eval runs/first --tasks lambada_openai,piqa --task-data benchmarks[/dim]
    """
    import torch
    from rich.console import Group

    from cocomix.evaluation import Run, evaluate_run, evaluate_tasks
    from cocomix.evaluation import run_evaluation as tables
    from cocomix.evaluation.loss_slices import SLICES
    from cocomix.evaluation.minimal_pairs import measure_pairs
    from cocomix.experiments import next_step
    from cocomix.runtime.device import default_device

    if tasks is not None and "minimal_pairs" in tasks and (tasks != "minimal_pairs" or task_data is not None):
        raise CoCoMixError("minimal_pairs are of the run's own text; measure them alone, without --task-data.")
    if tasks is None and (task_data is not None or limit is not None):
        raise CoCoMixError("--task-data and --limit are for downstream tasks; name them with --tasks.")
    opened, dtype = Run.open(run), torch.bfloat16 if bf16 else torch.float32
    how: dict[str, Any] = {"device": default_device(), "batch_size": batch_size, "dtype": dtype}
    if tasks == "minimal_pairs":
        how |= {} if limit is None else {"limit": limit}
        pairs = measure_pairs(opened, **how)
        return Printed(pairs.model_dump(), pairs.table().rich())
    if tasks is not None:
        downstream = evaluate_tasks(opened, tasks.split(","), task_data=task_data, limit=limit, **how)
        return Printed(downstream.model_dump(), downstream.table().rich())
    result = evaluate_run(opened, data=data, labels=labels, limit_blocks=limit_blocks, block_size=block_size, **how)
    poor = tables.worse_than_bigram(result.run, result.loss, result.references)
    for warning in (*filter(None, [poor]), *tables.concept_advice(result)):
        logger.warning(warning)
    shown = [
        tables.loss_table([result]),
        tables.recall_table([result]),
        tables.reliance_table(result),
        *(tables.slice_table([result], column) for column in SLICES),
    ]
    note = result.reliance_note if result.reliance is None else result.reliance.note
    printed = Group(*(table.rich() for table in shown if table is not None), *filter(None, [note]))
    following = next_step(run) or f"cocomix explore {shlex.quote(str(run))}"
    return Printed(result.model_dump(mode="json"), printed, next=following)
