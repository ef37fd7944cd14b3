"""The `cocomix` command: one thin function per verb."""

import errno
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cocomix.allocator import keep_freed_memory
from cocomix.config import describe_validation_error
from cocomix.errors import CoCoMixError
from cocomix.reporter import ConsoleReporter

__all__ = ["app", "main"]


class _Interrupted(Exception):
    """Ctrl-C in a command, which Typer would turn into a bare exit status."""


class _Commands(typer.core.TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


app = typer.Typer(
    name="cocomix",
    cls=_Commands,
    help="Pretrain language models that predict and mix continuous concepts.\n\n"
    "In the order of use: prepare, sae, label, train, eval, compare; then generate and inspect. "
    "`cocomix demo` does all of it on this machine's own documentation.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist yet.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")]
DataFolder = Annotated[Path, typer.Argument(metavar="DATA", help="Folder written by `cocomix prepare`.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `cocomix train`.")]


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit status 1, Ctrl-C in 130."""
    try:
        keep_freed_memory()
        _quiet_libraries()
        app()
    except (KeyboardInterrupt, _Interrupted):
        _fail("stopped by Ctrl-C; run the same command again to go on from what is finished.", 130)
    except CoCoMixError as error:
        _fail(str(error), 1)
    except ValidationError as error:
        _fail(f"{describe_validation_error(error)}.", 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = error.filename or "the output folder"
        _fail(f"cannot write {where}: {error.strerror}; make room or choose another --output, and run again.", 1)


def _fail(message: str, status: int) -> NoReturn:
    Console(stderr=True).print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(status)


def _quiet_libraries() -> None:
    """Let the libraries underneath speak only of errors: this command tells what it does itself."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _print_table(values: dict[str, Any]) -> None:
    """Two columns, name and value, on standard output."""
    table = Table(show_header=False, box=None)
    for name, value in values.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value))
    Console().print(table)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


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
    validation: Annotated[list[str] | None, typer.Option(help="Source of the validation split; repeatable.")] = None,
    validation_fraction: Annotated[float, typer.Option(help="Share of documents that validates.")] = 0.01,
    text_column: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
    max_bytes: Annotated[int | None, typer.Option(help="Stop after this many bytes of training text.")] = None,
    hf_config: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None,
    hf_split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
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
        max_bytes=max_bytes,
        hf_config=hf_config,
        hf_split=hf_split,
        seed=seed,
    )
    data = run(settings, output, ConsoleReporter(quiet=quiet))
    if json_output:
        _print_json(data.meta.model_dump(mode="json"))


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
    from cocomix.config import TeacherConfig
    from cocomix.pipeline import fit_on_data

    settings = FitSettings(
        num_concepts=num_concepts, k=k, tokens=tokens, batch_size=batch_size, learning_rate=learning_rate, seed=seed
    )
    source = TeacherConfig(model=teacher, layer=layer, revision=revision)
    report = fit_on_data(data, source, output, settings, ConsoleReporter(quiet=quiet))
    if json_output:
        _print_json(report.model_dump(mode="json"))


@app.command()
def label(
    data: DataFolder,
    recipe: Annotated[Path | None, typer.Option(help="Take teacher, dictionary and attribution from a recipe.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Causal language model: Hub name, folder or GGUF file.")] = None,
    dictionary: Annotated[str | None, typer.Option(help="SAELens release, or folder of an autoencoder.")] = None,
    sae_id: Annotated[str | None, typer.Option(help="Which autoencoder of a release.")] = None,
    layer: Annotated[int | None, typer.Option(help="Block it describes; default: as `cocomix sae` noted.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write; default DATA/labels.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="k, selection, activation, gradient, sign or dtype."),
    ] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens per forward pass.")] = 4096,
    force: Annotated[bool, typer.Option(help="Use a dictionary that does not fit the layer.")] = False,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Label every token with the concepts that matter for what comes next.

    An interrupted run goes on at the next shard when the same command is given again.

    [dim]Example: cocomix label data/books --teacher openai-community/gpt2 --dictionary sae/books[/dim]
    """
    from cocomix.config import label_sources
    from cocomix.pipeline import label_data, layer_of_dictionary

    sources = label_sources(
        recipe,
        teacher=teacher,
        dictionary=dictionary,
        sae_id=sae_id,
        layer=layer,
        assignments=assignments or (),
        layer_of=layer_of_dictionary,
    )
    manifest = label_data(
        data,
        sources.teacher,
        sources.dictionary,
        output or data / "labels",
        sources.settings,
        force=force,
        batch_tokens=batch_tokens,
        reporter=ConsoleReporter(quiet=quiet),
    )
    if json_output:
        _print_json(manifest.model_dump(mode="json"))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file; see the recipes folder.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder; default runs/RECIPE.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a field; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Check the recipe and print its cost; train nothing.")] = False,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a student, a baseline or a teacher from a recipe.

    A stopped run goes on from its last checkpoint when the same command is given again.

    [dim]Example: cocomix train recipes/demo.yaml --set tokens=200000 --output runs/first[/dim]
    """
    from cocomix.config import load_recipe
    from cocomix.training import dry_run as preview
    from cocomix.training import train as run

    config = load_recipe(recipe, assignments or ())
    if dry_run:
        plan = preview(config)
        (_print_json if json_output else _print_table)(plan)
        return
    folder = run(config, output or Path("runs") / recipe.stem, ConsoleReporter(quiet=quiet))
    if json_output:
        typer.echo((folder / "manifest.json").read_text(encoding="utf-8"))


@app.command("eval")
def evaluate(
    run: RunFolder,
    data: Annotated[Path | None, typer.Option(help="Other prepared data; default: the run's own.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Labels of that data.")] = None,
    batch_size: Annotated[int, typer.Option(help="Blocks per forward pass.")] = 8,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16 instead of float32.")] = False,
    limit_blocks: Annotated[int | None, typer.Option(help="Use only the first blocks.")] = None,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a run: loss, perplexity, bits per byte, concept recall and reliance.

    [dim]Example: cocomix eval runs/first[/dim]
    """
    import torch

    from cocomix.device import default_device
    from cocomix.evaluation import Run, evaluate_run

    result = evaluate_run(
        Run.open(run),
        device=default_device(),
        data=data,
        labels=labels,
        batch_size=batch_size,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        limit_blocks=limit_blocks,
        reporter=ConsoleReporter(quiet=quiet),
    ).to_json()
    if json_output:
        _print_json(result)
    else:
        reliance = result.pop("concept_reliance", {})
        _print_table({**result, **{f"reliance: {name}": value for name, value in reliance.items()}})


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
    from cocomix.evaluation import Run, write_report
    from cocomix.evaluation import compare as run

    comparison = run([Run.open(folder) for folder in runs], baseline)
    write_report(comparison, output, reporter=ConsoleReporter(quiet=quiet))
    if json_output:
        _print_json(comparison.to_json())
    else:
        typer.echo(comparison.to_markdown())


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")],
    steer: Annotated[
        list[str] | None, typer.Option(metavar="ID=FACTOR", help="Multiply a concept's logit; repeatable.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 = always the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample among so many tokens.")] = 50,
    seed: Annotated[int, typer.Option(help="Decides the sample.")] = 0,
    json_output: AsJson = False,
) -> None:
    """Continue a text, with concepts turned up or down.

    [dim]Example: cocomix generate runs/first "The function returns" --steer 412=5[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.interpret import generate as run_generate
    from cocomix.interpret import parse_steer

    opened = Run.open(run)
    texts = run_generate(
        opened.model(),
        opened.tokenizer(),
        prompt,
        max_new_tokens=max_new_tokens,
        edits=[parse_steer(text) for text in steer or ()],
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    if json_output:
        _print_json({"prompt": prompt, "continuation": texts[0], "steer": list(steer or ())})
    else:
        typer.echo(prompt + texts[0])


@app.command()
def inspect(
    run: RunFolder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to look at.")],
    top: Annotated[int, typer.Option(help="Concepts per token.")] = 3,
    describe: Annotated[bool, typer.Option(help="Say what concepts stand for, from the run's labels.")] = True,
    json_output: AsJson = False,
) -> None:
    """Show the strongest predicted concepts at every token of a text.

    [dim]Example: cocomix inspect runs/first "Return the number of items."[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.interpret import inspect_text, render_table
    from cocomix.interpret.run_concepts import describe_run_concepts

    opened = Run.open(run)
    tokens = inspect_text(opened.model(), opened.tokenizer(), text, top=top)
    wanted = sorted({concept.id for token in tokens for concept in token.concepts})
    descriptions = describe_run_concepts(opened, wanted) if describe else {}
    if json_output:
        _print_json([asdict(token) for token in tokens])
    else:
        Console().print(render_table(tokens, descriptions))


@app.command()
def demo(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder for everything.")] = Path("cocomix-demo"),
    fast: Annotated[bool, typer.Option(help="Two to three minutes; too short to learn much.")] = False,
    quiet: Quiet = False,
) -> None:
    """The whole method on this machine's own documentation, in about ten minutes.

    Finished stages are kept: a second run, or one after a stop, goes on where it was.
    """
    from cocomix.demo import run_demo

    run_demo(directory, fast=fast, reporter=ConsoleReporter(quiet=quiet))
