"""The verb `train`."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cocomix.cli.printing import Printed, values_table
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.processes import is_first_process

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["train"]

logger = logging.getLogger(__name__)


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
) -> Printed:
    """Train a student, baseline or teacher from a recipe.

    A stopped run goes on from its last checkpoint when the same command is given again.

    [dim]Example: cocomix train recipes/demo.yaml --set tokens=200000 --output runs/first[/dim]
    """
    from cocomix.artifacts import MANIFEST, RemoteFolder, read_json, url_of
    from cocomix.training.recipe_file import finished_run, recipe_fingerprint, recipe_values

    output, values = output or Path("runs") / recipe.stem, recipe_values(recipe, assignments or ())
    if not dry_run and (finished := finished_run(output, values)) is not None:
        return Printed(finished)

    from cocomix.runtime.device import choose_threads
    from cocomix.training import dry_run as preview
    from cocomix.training import train as run
    from cocomix.training.recipe import load_recipe

    config = load_recipe(recipe, assignments or ())
    if dry_run:
        plan = preview(config)
        return Printed(plan, values_table({name: _readable(name, value) for name, value in plan.items()}))
    choose_threads()
    folder = run(config, output, profile_steps=profile, recipe_fingerprint=recipe_fingerprint(values))
    if (url := url_of(folder)) is not None:
        return Printed(json.loads(RemoteFolder(url).read(MANIFEST)))
    told = is_first_process() and logger.isEnabledFor(logging.INFO)  # not with --quiet, as sweeps train
    return Printed(read_json(folder / MANIFEST), _beside_references(folder) if told else None)


def _beside_references(folder: Path) -> "Table | None":
    """The final loss among those of n-gram tables of the same training tokens; a warning where it is worse."""
    from cocomix.evaluation import Run, final_references
    from cocomix.evaluation.evaluation_tables import models_table, worse_than_bigram

    finished = Run.open(folder)
    name, loss = finished.manifest.name, finished.manifest.final.eval_loss
    try:
        references = final_references(finished)
    except CoCoMixError as error:  # the run is whole without them
        logger.warning(f"there are no n-gram references: {error}")
        return None
    if (warning := worse_than_bigram(name, loss, references)) is not None:
        logger.warning(warning)
    return models_table({name: loss}, references, "Final evaluation", None).rich()


def _readable(name: str, value: Any) -> Any:
    """A number of a dry run with three digits and a prefix; counts that people check as they are."""
    from cocomix.evaluation.formatting import si

    if not isinstance(value, int | float) or name in ("steps", "tokens per step") or value < 1000:
        return value
    return si(value)
