"""Verbs that look at a model's concepts and turn them: generate, steer-eval, inspect."""

from dataclasses import asdict
from typing import Annotated, Literal, TypeVar

import typer
from rich.console import Console

from cocomix.cli.application import AsJson, Output, Quiet, RunFolder, app, print_json, print_table
from cocomix.runtime.console import ConsoleReporter
from cocomix.runtime.errors import CoCoMixError

__all__ = ["generate", "inspect", "steer_eval"]

Number = TypeVar("Number", int, float)


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")],
    steer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID=FACTOR",
            help="Multiply a concept's logit (412=5), add to it (412+3, 412-3), set it (412:=8) or leave the concept "
            "out (412:ban); with @20 at the end from token 20 on. Repeatable.",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 = always the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample among so many tokens.")] = 50,
    seed: Annotated[int, typer.Option(help="Decides the sample.")] = 0,
    json_output: AsJson = False,
    quiet: Quiet = False,
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
        reporter=ConsoleReporter(quiet=quiet),
    )
    if json_output:
        print_json({"prompt": prompt, "continuation": texts[0], "steer": list(steer or ())})
    else:
        typer.echo(prompt + texts[0])


@app.command("steer-eval")
def steer_eval(
    run: RunFolder,
    output: Output,
    teacher: Annotated[str | None, typer.Option(help="Teacher; default: of the run's recipe or labels.")] = None,
    dictionary: Annotated[str | None, typer.Option(help="Folder of its dictionary; default: likewise.")] = None,
    concepts: Annotated[str | None, typer.Option(metavar="ID,ID,…", help="Concepts to turn; default: chosen.")] = None,
    num_concepts: Annotated[int, typer.Option(help="How many to choose.")] = 16,
    choice: Annotated[
        Literal["persistent", "frequent"],
        typer.Option(help="Those that last over passages rather than single tokens, or that label most tokens."),
    ] = "persistent",
    turn: Annotated[
        Literal["add", "scale"],
        typer.Option(help="Add the logit's usual value so many times, or multiply the logit, as the paper does."),
    ] = "add",
    factors: Annotated[
        str, typer.Option(metavar="X,Y,…", help="How far to turn; below 0: down.")
    ] = "-10,-5,-2,-1,0,1,2,5,10",
    prompts: Annotated[int, typer.Option(help="Validation prompts per concept.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(help="Their length.")] = 16,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate after each.")] = 32,
    temperature: Annotated[float, typer.Option(help="0 = always the likeliest token.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Texts per batch.")] = 32,
    seed: Annotated[int, typer.Option(help="Decides samples, controls and intervals.")] = 0,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure which concepts steer, how, and at what cost.

    [dim]Example: cocomix steer-eval runs/first --num-concepts 8 --output steering[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.interpret import SteerEvalSettings, evaluate_run_steering

    settings = SteerEvalSettings(
        concepts=tuple(_numbers(concepts, "--concepts", int)) if concepts is not None else (),
        num_concepts=num_concepts,
        choice=choice,
        turn=turn,
        factors=tuple(_numbers(factors, "--factors", float)),
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        temperature=temperature,
        batch_size=batch_size,
        seed=seed,
    )
    report = evaluate_run_steering(
        Run.open(run),
        output,
        settings,
        teacher=teacher,
        dictionary=dictionary,
        reporter=ConsoleReporter(quiet=quiet),
    )
    if json_output:
        print_json(report.to_json())
    else:
        print_table(report.summary())


def _numbers(text: str, option: str, kind: type[Number]) -> list[Number]:
    """Numbers separated by commas."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise CoCoMixError(f"{option} {text} must be numbers separated by commas, without spaces.") from None


@app.command()
def inspect(
    run: RunFolder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to look at.")],
    top: Annotated[int, typer.Option(help="Concepts per token.")] = 3,
    describe: Annotated[bool, typer.Option(help="Say what concepts stand for, from the run's labels.")] = True,
    json_output: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the concepts predicted at every token.

    [dim]Example: cocomix inspect runs/first "Return the number of items."[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.interpret import inspect_text, render_table
    from cocomix.interpret.run_concepts import describe_run_concepts

    opened = Run.open(run)
    with ConsoleReporter(quiet=quiet).progress("looking", None, "steps"):
        tokens = inspect_text(opened.model(), opened.tokenizer(), text, top=top)
        wanted = sorted({concept.id for token in tokens for concept in token.concepts})
        descriptions = describe_run_concepts(opened, wanted) if describe else {}
    if json_output:
        print_json([asdict(token) for token in tokens])
    else:
        Console().print(render_table(tokens, descriptions))
