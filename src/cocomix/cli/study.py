"""Verbs that look at a model's concepts and turn them: generate, inspect."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from cocomix.cli.application import AsJson, RunFolder, app, print_json


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
        print_json({"prompt": prompt, "continuation": texts[0], "steer": list(steer or ())})
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
        print_json([asdict(token) for token in tokens])
    else:
        Console().print(render_table(tokens, descriptions))
