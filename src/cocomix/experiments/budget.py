"""A sweep within a given time: every run gets the same share of its tokens, by the speed of each arm on this machine.

Learning rates fall to their end in the shorter runs too, which runs that are broken off would not show.
"""

import logging
import math
import time
from dataclasses import replace

from cocomix.artifacts import read_json, write_json
from cocomix.experiments.sweep_plan import Job, LoadedPlan
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.recipe_cost import seconds_per_token

logger = logging.getLogger(__name__)

_FILE = "budget.json"
_MEASURING = 0.05  # share of the budget for timing steps, and the most seconds an arm gets of it
_MOST_SECONDS = 10.0
_TRAINING = 0.75  # share of what is left then; evaluations, checkpoints and the report take the rest


def remembered(loaded: LoadedPlan, budget: float | None) -> LoadedPlan:
    """The plan with the shorter runs that its folder began with, so that a stopped sweep goes on with the same ones.

    Raises:
        CoCoMixError: the folder's sweep had another budget than this one.
    """
    file = loaded.output / _FILE
    if not file.exists():
        if budget is not None and (loaded.output / "runs").exists():
            raise CoCoMixError(f"{loaded.output} holds runs without a budget already; choose another --output.")
        return loaded
    found = read_json(file)
    if budget not in (None, found["seconds"]):
        raise CoCoMixError(
            f"{loaded.output} holds a sweep for {found['seconds']:g} s, not {budget:g} s; choose another --output."
        )
    return replace(loaded, share=found["share"])


def within_budget(loaded: LoadedPlan, budget: float, left: float) -> LoadedPlan:
    """The plan with runs so short that they take about the time that is left.

    Args:
        loaded: the plan; its data, dictionary and labels are there.
        budget: seconds for the whole sweep.
        left: seconds of it that are left.

    Raises:
        CoCoMixError: an arm names no `tokens` or cannot be timed; or no time is left.
    """
    if (loaded.output / _FILE).exists():
        return loaded
    if left <= 0:
        raise CoCoMixError(
            f"data, teacher and labels have taken all of the {budget:g} s; they are kept: give the command again."
        )
    began, arms = time.monotonic(), {job.arm: job for job in loaded.jobs()}
    seconds = min(_MOST_SECONDS, _MEASURING * left / len(arms))
    speeds = {name: _seconds_per_token(job, seconds) for name, job in arms.items()}
    needed = sum(_tokens(job) * speeds[job.try_of or job.arm] for job in (*loaded.tries(), *loaded.jobs()))
    left = max(left - (time.monotonic() - began), 1.0)
    share = min(1.0, _rounded(_TRAINING * left / needed))
    write_json(loaded.output / _FILE, {"seconds": budget, "share": share, "seconds_per_token": speeds})
    logger.info(f"every run gets {share:.2%} of its tokens, so that the sweep takes about {budget:,.0f} s")
    return replace(loaded, share=share)


def _tokens(job: Job) -> int:
    if job.recipe.tokens is None:
        raise CoCoMixError(f"the arm {job.arm!r} names no tokens:, which a budget shortens; give it some.")
    return job.recipe.tokens


def _seconds_per_token(job: Job, seconds: float) -> float:
    _tokens(job)
    found = seconds_per_token(job.recipe, seconds)
    if isinstance(found, str):
        raise CoCoMixError(f"the arm {job.arm!r} cannot be timed: {found}; sweep without --budget.")
    return found


def _rounded(share: float) -> float:
    """Down to two digits, so that a recipe's tokens are numbers that one can read."""
    place = 10.0 ** (math.floor(math.log10(share)) - 1)
    return math.floor(share / place) * place
