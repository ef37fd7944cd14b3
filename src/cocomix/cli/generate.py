"""The verb `generate`."""

import logging
from typing import Annotated

import typer

from cocomix.cli.options import RunOrExample
from cocomix.cli.printing import Printed

logger = logging.getLogger(__name__)


def generate(
    run: RunOrExample,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")],
    steer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID+NUMBER",
            help="Add to a concept's logit (412+3, 412-3), multiply it (412=5), set it (412:=8) or leave the concept "
            "out (412:ban); with @20 at the end from token 20 on. Repeatable.",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 = always the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample among so many tokens.")] = 50,
    seed: Annotated[int, typer.Option(help="Decides the sample.")] = 0,
) -> Printed:
    """Continue a text, with concepts turned up or down.

    [dim]Example: cocomix generate runs/first "The function returns" --steer 412+5[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.interpret import edit_effects, encode, parse_steer
    from cocomix.interpret import generate as run_generate

    opened = Run.open(run)
    model, tokenizer, edits = opened.model(), opened.tokenizer(), [parse_steer(text) for text in steer or ()]
    (text,) = run_generate(
        model,
        tokenizer,
        prompt,
        max_new_tokens=max_new_tokens,
        edits=edits,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    found = edit_effects(model, encode(model, tokenizer, prompt + text, cut=True), edits) if edits else []
    for effect in found:
        if not effect.acts:
            logger.warning(str(effect))
    effects = [
        {"steer": given, "predicted": one.predicted, "acts": one.acts, "would_act": one.would_act}
        for given, one in zip(steer or (), found, strict=True)
    ]
    return Printed(
        {"prompt": prompt, "continuation": text, "steer": list(steer or ()), "effects": effects}, prompt + text
    )
