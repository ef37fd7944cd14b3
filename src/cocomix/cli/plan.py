"""The verb `plan`."""

import shlex
from typing import Annotated, Any

import typer

from cocomix.cli.options import Recipe, Set
from cocomix.cli.printing import Printed, table


def plan(
    recipe: Recipe,
    assignments: Set = None,
    seconds: Annotated[
        float, typer.Option(min=0, max=600, help="How long to time steps of the student here; 0 for not at all.")
    ] = 10.0,
) -> Printed:
    """Check a recipe and say what it will cost.

    Tokens, FLOPs, hours on this machine by a few real steps, hours on one large GPU, memory, disk. Nothing is kept.

    [dim]Example: cocomix plan recipes/demo.yaml[/dim]
    """
    from cocomix.experiments import next_step
    from cocomix.training import estimate
    from cocomix.training.recipe import load_recipe

    config = load_recipe(recipe, assignments or ())
    found = estimate(config, seconds=seconds)
    rows = [(name, _readable(name, value)) for name, value in found.items()]
    there = all(folder.is_dir() for folder in (*config.data_folders, *config.label_folders))
    train = f"cocomix train {shlex.quote(str(recipe))}" if there and not assignments else None
    return Printed(found, table(rows), next=next_step(recipe) or train)


def _readable(name: str, value: Any) -> str:
    """A number with three digits and a prefix, a small one in a smaller unit, too; counts to be checked as they are."""
    from cocomix.evaluation.pages import duration, si

    if name.startswith("hours") and isinstance(value, float):
        return f"{value:,.2f} ({duration(3600 * value) if value > 1 / 3600 else 'under a second'})"
    if name.startswith(("GB", "GiB")) and value < 0.1:
        return f"{value:.2f} ({1000 * value:.2g} MB)" if name[1] == "B" else f"{value:.2f} ({1024 * value:.2g} MiB)"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if name in ("steps", "tokens per step") or value < 1000 else si(value)
