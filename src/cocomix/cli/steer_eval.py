"""The verb `steer-eval`."""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal, TypeVar

import typer
from rich.console import Group

from cocomix.cli.options import Output, RunFolder
from cocomix.cli.printing import Printed
from cocomix.runtime.errors import CoCoMixError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class _Settings:
    """Every field is an option, and one of `SteerEvalSettings`."""

    concepts: Annotated[str | None, typer.Option(metavar="ID,ID,…", help="Concepts to turn; default: chosen.")] = None
    num_concepts: Annotated[int, typer.Option(help="How many to choose, most frequently predicted first.")] = 16
    turn: Annotated[
        Literal["add", "scale"],
        typer.Option(help="Add to the logit, in units of where the concept truly is, or multiply it (the paper)."),
    ] = "add"
    factors: Annotated[
        str, typer.Option(metavar="X,Y,…", help="How far to turn, with the one that changes nothing (0; with scale 1).")
    ] = "0,0.5,1,2,4"
    prompts: Annotated[int, typer.Option(help="Validation prompts per concept.")] = 8
    prompt_tokens: Annotated[int, typer.Option(help="Their length.")] = 16
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate after each, the writer's own.")] = 32
    fluency: Annotated[float, typer.Option(help="Perplexity may rise so many times at the factor compared.")] = 1.5
    temperature: Annotated[float, typer.Option(help="0 = always the likeliest token.")] = 1.0
    batch_size: Annotated[int, typer.Option(help="Texts per batch.")] = 32
    seed: Annotated[int, typer.Option(help="Decides samples and intervals.")] = 0


def steer_eval(
    *,
    run: RunFolder,
    output: Output,
    teacher: Annotated[str | None, typer.Option(help="Teacher; default: of the run's recipe or labels.")] = None,
    dictionary: Annotated[str | None, typer.Option(help="Folder of its dictionary; default: likewise.")] = None,
    options: _Settings,
) -> Printed:
    """Measure whether concepts steer, and better than a prompt.

    The teacher reads every text; one of another tokenizer than the run's is aligned by bytes, as for its labels.

    [dim]Example: cocomix steer-eval runs/first --num-concepts 8 --output steering[/dim]
    """
    from cocomix.evaluation import Run
    from cocomix.interpret import SteerEvalSettings, evaluate_run_steering

    concepts = tuple(_numbers(options.concepts, "--concepts", int)) if options.concepts is not None else ()
    factors = tuple(_numbers(options.factors, "--factors", float))
    settings = SteerEvalSettings(**asdict(options) | {"concepts": concepts, "factors": factors})
    report = evaluate_run_steering(Run.open(run), output, settings, teacher=teacher, dictionary=dictionary)
    return Printed(report.to_json(), Group(*report.found(), *(table.rich() for table in report.tables())))


def _numbers(text: str, option: str, kind: type[Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise CoCoMixError(f"{option} {text} must be numbers separated by commas, without spaces.") from None
