"""The verb `train`."""

import json
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cocomix.cli.options import Recipe, Set
from cocomix.cli.printing import Printed
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.processes import is_first_process

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder; default runs/RECIPE.")] = None,
    assignments: Set = None,
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
    if (finished := finished_run(output, values)) is not None:
        return Printed(finished, next=_next(output, recipe))

    from cocomix.runtime.device import choose_threads
    from cocomix.training import train as run
    from cocomix.training.recipe import load_recipe

    config = load_recipe(recipe, assignments or ())
    choose_threads()
    folder = run(config, output, profile_steps=profile, recipe_fingerprint=recipe_fingerprint(values))
    if (url := url_of(folder)) is not None:
        return Printed(json.loads(RemoteFolder(url).read(MANIFEST)))
    told = is_first_process() and logger.isEnabledFor(logging.INFO)  # not with --quiet, as sweeps train
    table = _beside_references(folder) if told else None
    return Printed(read_json(folder / MANIFEST), table, next=_next(output, recipe))


def _next(run: Path, recipe: Path) -> str:
    from cocomix.experiments import next_step

    return next_step(run, recipe) or f"cocomix eval {shlex.quote(str(run))}"


def _beside_references(folder: Path) -> "Table | None":
    """The final loss among those of n-gram tables of the same training tokens; a warning where it is worse."""
    from cocomix.data import VALIDATION
    from cocomix.evaluation import Run, final_references
    from cocomix.evaluation.run_evaluation import models_table, worse_than_bigram
    from cocomix.evaluation.run_inputs import open_run_data

    finished = Run.open(folder)
    name, loss = finished.manifest.name, finished.manifest.final.eval_loss
    try:
        references = final_references(finished)
        bits = open_run_data(finished).manifest.splits[VALIDATION].bits_per_byte
    except CoCoMixError as error:  # the run is whole without them
        logger.warning(f"there are no n-gram references: {error}")
        return None
    if (warning := worse_than_bigram(name, loss, references)) is not None:
        logger.warning(warning)
    caption = f"Final evaluation, first {finished.manifest.evaluation_blocks:,} validation blocks"
    return models_table({name: loss}, references, caption, bits).rich()
