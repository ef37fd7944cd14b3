"""Every arm's learning rate from short runs of it, on one grid; the grid and its losses are kept."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from cocomix.artifacts import read_json, write_json
from cocomix.experiments.plan import Job, LoadedPlan

__all__ = ["TRIED", "best_learning_rates", "losses_by_learning_rate", "note_learning_rates"]

logger = logging.getLogger(__name__)

TRIED = "learning_rates.json"
"""File of a sweep's folder with what was tried and chosen."""


def losses_by_learning_rate(tries: Sequence[Job]) -> dict[str, dict[float, float]]:
    """The final validation loss of every finished try, nats per token, by arm and learning rate."""
    losses: dict[str, dict[float, float]] = {}
    for job in tries:
        assert job.try_of is not None
        found = losses.setdefault(job.try_of, {})
        if job.folder.exists():
            found[job.learning_rate] = read_json(job.folder / "manifest.json")["final"]["eval_loss"]
    return losses


def best_learning_rates(tries: Sequence[Job]) -> dict[str, float]:
    """The learning rate of the least loss, by arm; arms of which no try is finished are left out."""
    losses = losses_by_learning_rate(tries)
    return {arm: min(found, key=found.__getitem__) for arm, found in losses.items() if found}


def note_learning_rates(loaded: LoadedPlan, tries: Sequence[Job]) -> dict[str, Any]:
    """Write what was tried and chosen; a choice at the end of its grid is warned of.

    Returns:
        By arm: `losses` by learning rate (`None` where the try failed) and `chosen`.
    """
    chosen, noted = best_learning_rates(tries), {}
    for arm, found in losses_by_learning_rate(tries).items():
        grid = sorted(job.learning_rate for job in tries if job.try_of == arm)
        best = chosen.get(arm, math.nan)
        if best in (grid[0], grid[-1]):
            end = "smallest" if best == grid[0] else "largest"
            logger.warning(f"{arm}: the best learning rate, {best:g}, is the {end} tried; widen learning_rates.")
        noted[arm] = {"losses": {f"{rate:g}": found.get(rate) for rate in grid}, "chosen": chosen.get(arm)}
    if noted:
        write_json(loaded.output / TRIED, noted)
    return noted
