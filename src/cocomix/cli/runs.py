"""Verbs that train models and measure them: train, eval, compare, analyse."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.application import AsJson, Output, Quiet, RunFolder, app, print_json, print_table
from cocomix.runtime.console import ConsoleReporter
from cocomix.runtime.errors import CoCoMixError

__all__ = ["analyse", "compare", "consolidate", "evaluate", "train"]


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file; see the recipes folder.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder; default runs/RECIPE.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a field; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Check the recipe and print its cost; train nothing.")] = False,
    profile: Annotated[
        int, typer.Option(metavar="N", help="Record N steps in the run's profile folder; they take longer.")
    ] = 0,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a student, baseline or teacher from a recipe.

    A stopped run goes on from its last checkpoint when the same command is given again.

    [dim]Example: cocomix train recipes/demo.yaml --set tokens=200000 --output runs/first[/dim]
    """
    from cocomix.artifacts.remote import local_folder
    from cocomix.runtime.processes import is_first_process
    from cocomix.training import dry_run as preview
    from cocomix.training import train as run
    from cocomix.training.recipe import load_recipe

    config = load_recipe(recipe, assignments or ())
    if dry_run:
        plan = preview(config)
        if is_first_process():
            (print_json if json_output else print_table)(plan)
        return
    folder = run(config, output or Path("runs") / recipe.stem, ConsoleReporter(quiet=quiet), profile_steps=profile)
    if json_output and is_first_process():
        typer.echo((local_folder(folder, "manifest.json") / "manifest.json").read_text(encoding="utf-8"))


@app.command("eval")
def evaluate(
    run: RunFolder,
    data: Annotated[Path | None, typer.Option(help="Other prepared data; default: the run's own.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Labels of that data.")] = None,
    batch_size: Annotated[int, typer.Option(help="Blocks per forward pass.")] = 8,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16 instead of float32.")] = False,
    limit_blocks: Annotated[int | None, typer.Option(help="Use only the first blocks.")] = None,
    per_document: Annotated[bool, typer.Option("--per-document", help="Keep losses by document for compare.")] = False,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Measure downstream tasks instead; `paper` = the paper's seven."),
    ] = None,
    task_data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with A.jsonl, B.jsonl, …; default: the tasks' hub data.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first rows of each task.")] = None,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a run's loss and use of concepts, or tasks.

    Loss, perplexity, bits per byte, concept recall and concept reliance go to the run's evaluation.json.

    [dim]Example: cocomix eval runs/first[/dim]

    [dim]Example: cocomix eval runs/first --tasks lambada_openai,piqa --task-data benchmarks[/dim]
    """
    import torch

    from cocomix.evaluation import Run, evaluate_run, evaluate_tasks
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
            reporter=ConsoleReporter(quiet=quiet),
        )
        (print_json(downstream.model_dump()) if json_output else print_table(downstream.summary()))
        return
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
        per_document=per_document,
        reporter=ConsoleReporter(quiet=quiet),
    ).to_json()
    if json_output:
        print_json(result)
    else:
        reliance = result.pop("concept_reliance", {})
        print_table({**result, **{f"reliance: {name}": value for name, value in reliance.items()}})


@app.command()
def consolidate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder checkpoint-STEP of a run with training.fsdp.")
    ],
    output: Output,
    quiet: Quiet = False,
) -> None:
    """Make one model of a sharded checkpoint.

    Finished runs hold the whole model already; this is for the checkpoints of one that is not.

    [dim]Example: cocomix consolidate runs/first.partial/checkpoints/checkpoint-100 --output model[/dim]
    """
    from cocomix.training.sharded_checkpoints import consolidate as run

    run(checkpoint, output)
    ConsoleReporter(quiet=quiet).say(f"the model of {checkpoint.name} is in {output}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, the baseline among them.")],
    output: Output,
    baseline: Annotated[str | None, typer.Option(help="Name of the baseline; default: the nearest NTP run.")] = None,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare runs: a table, curves, and a report page.

    [dim]Example: cocomix compare runs/ntp runs/first --output report[/dim]
    """
    from cocomix.evaluation import Run, recorded_sections, write_report
    from cocomix.evaluation import compare as run

    opened = [Run.open(folder) for folder in runs]
    comparison = run(opened, baseline)
    write_report(comparison, output, sections=recorded_sections(opened), reporter=ConsoleReporter(quiet=quiet))
    if json_output:
        print_json(comparison.to_json())
    else:
        typer.echo(comparison.to_markdown())


@app.command()
def analyse(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; those without concepts are left out.")
    ],
    output: Output,
    batch_size: Annotated[int, typer.Option(help="Blocks per forward pass.")] = 8,
    limit_blocks: Annotated[int | None, typer.Option(help="Use only the first validation blocks.")] = None,
    seed: Annotated[int, typer.Option(help="Of the shuffled concepts.")] = 0,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what the concepts of runs do, as one page.

    Concept reliance, lengths of compression vectors, recall by frequency, and statistics of the labels.

    [dim]Example: cocomix analyse runs/first runs/residual --output analyses[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.evaluation.analyses_report import analyse_runs
    from cocomix.runtime.device import default_device

    values = analyse_runs(
        [Run.open(folder) for folder in runs],
        output,
        device=default_device(),
        batch_size=batch_size,
        limit_blocks=limit_blocks,
        seed=seed,
        reporter=ConsoleReporter(quiet=quiet),
    )
    if json_output:
        print_json(values)
    else:
        print_table(
            {
                f"{name}: {kind}": delta
                for name, each in values["reliance"].items()
                for kind, delta in each["deltas"].items()
            }
        )
        print_table(
            {
                f"{name}: compression vectors below 0.01": share
                for name, share in values["unused_compression_vectors"].items()
            }
        )
