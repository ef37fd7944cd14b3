"""`cocomix plan`: what a recipe costs, before it is run: tokens, FLOPs, hours here and on a GPU, memory and disk."""

import shutil
from pathlib import Path
from typing import Any

import torch

from cocomix.artifacts import is_there
from cocomix.labelling import Labels
from cocomix.runtime.device import default_device
from cocomix.training.arguments import tokens_per_step, training_arguments
from cocomix.training.corpora import labels_to_match, open_data, open_labels
from cocomix.training.launching import refuse_outside_forward, refuse_sharded_student, sharding_asked
from cocomix.training.objectives import auxiliary_objective
from cocomix.training.recipe import RunConfig
from cocomix.training.run_plan import Plan, describe_memory, describe_plan, plan_run
from cocomix.training.step_speed import StepSpeed, measure_steps

_GB = 10**9
_ADAM_BYTES = 12  # per parameter in a checkpoint: weight and two moments
_WEIGHT_BYTES = 4
_PROBABILITY_BYTES = 4  # of a token's id and its probability, as `cocomix distill` stores them
_PROBABILITIES = 64  # its default


def estimate(recipe: RunConfig, *, seconds: float = 10.0) -> dict[str, Any]:
    """Check a recipe and say what it costs, with the sizes of its data and labels where these are there already.

    Args:
        recipe: the recipe; nothing of it has to be there but a hub or folder that it takes an architecture from.
        seconds: how long to measure steps of the student on this machine; 0 measures nothing.

    Returns:
        Numbers and texts by names that say their units, in the order a person asks for them.

    Raises:
        CoCoMixError: as `train`.
    """
    if sharding_asked(recipe.training, {}, processes=2):
        refuse_outside_forward(auxiliary_objective(name, settings) for name, settings in recipe.auxiliary.items())
        refuse_sharded_student(recipe.online_labels if recipe.has_concepts else None)
    plan = _planned(recipe)
    told = describe_plan(recipe, plan)
    tokens = told["tokens"] if isinstance(told["tokens"], int) else None
    if seconds > 0:
        told |= _here(recipe, plan, tokens, seconds)
    return {**told, **describe_memory(recipe, plan), **_disk(recipe, plan, tokens)}


def _planned(recipe: RunConfig) -> Plan:
    """With the sizes of data and labels where these are there already."""
    data = open_data(recipe) if all(map(is_there, recipe.data_folders)) else None
    labels: Labels | None = None
    if data is not None and recipe.label_folders and all(map(is_there, recipe.label_folders)):
        stored = open_labels(recipe, data)
        labels = stored.first if stored else labels_to_match(recipe)
    return plan_run(recipe, data, labels)


def seconds_per_token(recipe: RunConfig, seconds: float) -> float | str:
    """Of training on this machine, evaluations left out, measured for so many seconds; or why it was not measured.

    Raises:
        CoCoMixError: as `train`.
    """
    plan = _planned(recipe)
    found = measure_steps(recipe, plan, seconds)
    return found if isinstance(found, str) else _per_token(recipe, plan, found)


def _per_token(recipe: RunConfig, plan: Plan, found: StepSpeed) -> float:
    arguments = training_arguments(recipe, Path("checkpoints"), plan.block_size, plan.train_blocks)
    step = tokens_per_step(arguments, plan.block_size)
    return found.seconds(step // plan.block_size) / step


def _here(recipe: RunConfig, plan: Plan, tokens: int | None, seconds: float) -> dict[str, Any]:
    """Measured speed, and the hours that follow."""
    found = measure_steps(recipe, plan, seconds)
    if isinstance(found, str):
        return {"hours on this machine": f"not measured: {found}"}
    rate = 1 / _per_token(recipe, plan, found)
    device = default_device()
    where = f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else str(device)
    left_out = ["evaluations", *(["the teacher beside it"] if _runs_teacher(recipe) else [])]
    return {
        "tokens per second on this machine": round(rate),
        "measured": f"{found.steps} steps of {found.blocks} blocks on {where}, random tokens",
        "hours on this machine": "the data's" if tokens is None else float(f"{tokens / rate / 3600:.3g}"),
        "left out of hours": " and ".join(left_out),
    }


def _runs_teacher(recipe: RunConfig) -> bool:
    distils = recipe.distillation is not None and not recipe.target_folders
    return distils or recipe.predicts_hidden or (recipe.has_concepts and recipe.online_labels is not None)


def _disk(recipe: RunConfig, plan: Plan, tokens: int | None) -> dict[str, Any]:
    """Room that is needed; data and labels of one pass over as many tokens, unless there are fewer."""
    arguments = training_arguments(recipe, Path("checkpoints"), plan.block_size, plan.train_blocks)
    parameters = plan.accounting.total_parameters
    stored = tokens if plan.train_blocks is None else plan.train_blocks * plan.block_size
    room: dict[str, Any] = {}
    if stored is not None:
        room["GB of tokens"] = stored * _id_bytes(plan.config.vocab_size) / _GB
        if recipe.has_concepts and recipe.label_folders:
            labeller = None if recipe.labels is None else recipe.labels.labeller
            each = _id_bytes(plan.config.num_concepts) + 2  # the score in float16
            room["GB of labels"] = stored * ((4 if labeller is None else labeller.k) * each + 1) / _GB
        if recipe.target_folders:
            room["GB of teacher probabilities"] = stored * _PROBABILITIES * _PROBABILITY_BYTES / _GB
    kept = (arguments.save_total_limit or 1) + 1  # and the one that is being written
    room["GB of checkpoints, at most"] = parameters * _ADAM_BYTES * kept / _GB
    room["GB of the finished run"] = parameters * _WEIGHT_BYTES / _GB
    return {name: float(f"{value:.2g}") for name, value in room.items()} | {
        "GB free here": round(shutil.disk_usage(Path.cwd()).free / _GB, 1)
    }


def _id_bytes(count: int) -> int:
    return 2 if count <= 2**16 else 4
