"""The verb `generate`."""

from typing import Annotated

import typer

from cocomix.cli.options import RunFolder
from cocomix.cli.printing import Printed

__all__ = ["generate"]


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
) -> Printed:
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
    return Printed({"prompt": prompt, "continuation": texts[0], "steer": list(steer or ())}, prompt + texts[0])
