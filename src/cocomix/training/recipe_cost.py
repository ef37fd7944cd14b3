"""`cocomix plan`: what a recipe costs, before it is run: tokens, FLOPs, hours here and on a GPU, memory and disk.

How fast this machine trains it is measured by a few real steps of the real student on random tokens, so that nothing
has to be prepared first: steps of `CoCoMixTrainer` with the recipe's arithmetic and optimizer. Left out are
compilation, which alone takes minutes, teachers that run while training, and other processes.
"""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

from cocomix.artifacts import is_there
from cocomix.model import CoCoMixConfig
from cocomix.model.accounting import build_model
from cocomix.model.memory import STATE_BYTES, activation_bytes
from cocomix.runtime.device import available_memory, choose_threads, default_device, products_per_second
from cocomix.training.arguments import tokens_after, tokens_per_step, total_steps, training_arguments
from cocomix.training.corpora import labels_to_match, open_data, open_labels
from cocomix.training.launching import refuse_under_fsdp, sharding_asked
from cocomix.training.manifest import extra_flops
from cocomix.training.objectives import auxiliary_objective
from cocomix.training.opened_run import ExtraFlops, training_flops
from cocomix.training.recipe import RunConfig
from cocomix.training.student import Plan, plan_run
from cocomix.training.trainer import CoCoMixTrainer

_GB = 10**9
_ADAM_BYTES = 12  # per parameter in a checkpoint: weight and two moments
_WEIGHT_BYTES = 4
_PROBABILITY_BYTES = 4  # of a token's id and its probability, as `cocomix distill` stores them
_PROBABILITIES = 64  # its default
_PRODUCT_FLOPS = 2 * 512**3  # of the product that `products_per_second` counts
_DROPPED = ("torch_compile", "fsdp", "fsdp_config", "deepspeed", "num_train_epochs", "run_name")
_ALONE = {
    "gradient_accumulation_steps": 1,
    "max_steps": 10**6,
    "eval_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
}
"""Fields of `training` that leave a step of one micro-batch and nothing else."""
_PARTS = 1000  # of a run, of which a weight that ends early counts in so many
_PLAIN = {512: 90.0e12, 624: 95.2e12, 1024: 160.7e12, 1072: 142.9e12}  # width: FLOPs a second
_WITH_CONCEPTS = {512: 86.3e12, 1024: 171.8e12}


@dataclass(frozen=True)
class StepSpeed:
    """What was measured: so many steps of micro-batches of so many blocks, the first step left out."""

    steps: int
    blocks: int
    seconds_per_block: float  # forward and backward pass
    seconds_per_update: float  # of the optimizer

    def seconds(self, blocks: int) -> float:
        """Of an optimizer step of so many blocks."""
        return blocks * self.seconds_per_block + self.seconds_per_update


def estimate(recipe: RunConfig, *, seconds: float = 10.0) -> dict[str, Any]:
    """Check a recipe and say what it costs, with the sizes of its data and labels where these are there already.

    Args:
        seconds: how long to measure steps of the student on this machine; 0 measures nothing.

    Returns:
        Numbers and texts by names that say their units, in the order a person asks for them.

    Raises:
        CoCoMixError: as `train`.
    """
    if sharding_asked(recipe.training, {}, processes=2):
        objectives = [auxiliary_objective(name, settings) for name, settings in recipe.auxiliary.items()]
        refuse_under_fsdp(objectives, recipe.online_labels if recipe.has_concepts else None)
    plan = _planned(recipe)
    told = describe_plan(recipe, plan)
    tokens = told["tokens"] if isinstance(told["tokens"], int) else None
    if seconds > 0:
        told |= _here(recipe, plan, tokens, seconds)
    return {**told, **describe_memory(recipe, plan), **_disk(recipe, plan, tokens)}


def describe_plan(recipe: RunConfig, plan: Plan) -> dict[str, Any]:
    """Sizes and cost by name, in the order a person asks for them."""
    arguments = training_arguments(recipe, Path("checkpoints"), plan.block_size, plan.train_blocks)
    count = plan.accounting
    step_tokens = tokens_per_step(arguments, plan.block_size)
    steps = max(arguments.max_steps, 0)
    if plan.train_blocks is not None:
        steps = total_steps(arguments, plan.train_blocks)
    after = partial(tokens_after, arguments=arguments, train_blocks=plan.train_blocks, block_size=plan.block_size)
    tokens = after(steps)
    beside = _beside(recipe, plan, steps, after)
    flops = training_flops(count.training_flops_per_token, beside, tokens)
    of_losses = sum(one.per_token - one.of_teacher for one in beside.values())
    return {
        "objective": recipe.objective,
        "arm": recipe.arm,
        "model": f"{plan.config.model_type}, d_model {plan.config.hidden_size}, {plan.config.num_hidden_layers} blocks",
        "parameters": count.total_parameters,
        "active parameters": count.active_parameters,
        **({"parameters of auxiliary losses": _parameters(beside)} if recipe.auxiliary else {}),
        "training FLOPs per token": count.training_flops_per_token,
        **({"and of auxiliary losses, while they count": of_losses} if recipe.auxiliary else {}),
        "tokens per step": step_tokens,
        "steps": steps or f"{arguments.num_train_epochs} epochs",
        "tokens": tokens or "the data's",
        **_labelled(recipe, plan, arguments, steps),
        "training FLOPs": flops or "the data's",
        "hours on one H200 or H100, estimated": float(f"{gpu_hours(plan.config, flops):.3g}") or "the data's",
    }


def _beside(
    recipe: RunConfig, plan: Plan, steps: int = _PARTS, tokens_until: Callable[[int], int] = int
) -> dict[str, ExtraFlops]:
    """What losses of `auxiliary` cost beside the model, as the run will record it; by default of `_PARTS` tokens.

    Args:
        steps: of the run.
        tokens_until: training tokens of so many steps.
    """
    objectives = [auxiliary_objective(name, settings) for name, settings in recipe.auxiliary.items()]
    return extra_flops(objectives, plan.config, lambda weight: tokens_until(weight.steps(steps)))


def _parameters(beside: dict[str, ExtraFlops]) -> int:
    return sum(one.parameters for one in beside.values())


def _labelled(recipe: RunConfig, plan: Plan, arguments: TrainingArguments, steps: int) -> dict[str, Any]:
    """Of a λ that ends early: how long labels are read, and of how many blocks they must be."""
    until = recipe.model.concept_loss_weight.steps(steps)
    if not recipe.has_concepts or plan.train_blocks is None or until == steps:
        return {}
    blocks = tokens_after(until, arguments, plan.train_blocks, plan.block_size) // plan.block_size
    return {"labels until step": until, "blocks to label, with first_blocks": min(blocks, plan.train_blocks)}


def describe_memory(recipe: RunConfig, plan: Plan) -> dict[str, Any]:
    """What a process needs for it on its device, in GiB, by name: without sharding, and without a teacher's weights."""
    arguments = training_arguments(recipe, Path("checkpoints"), plan.block_size, plan.train_blocks)
    state = STATE_BYTES * (plan.accounting.total_parameters + _parameters(_beside(recipe, plan)))
    memory = {"GiB of weights, gradients and optimizer, at most": state}
    if not arguments.gradient_checkpointing:
        kept = activation_bytes(
            plan.config, batch_size=arguments.train_batch_size, block_size=plan.block_size, bf16=arguments.bf16
        )
        memory |= {"GiB of activations, about": kept, "GiB of both": state + kept}
    return {name: float(f"{size / 2**30:.3g}") for name, size in memory.items()}  # of a small model it is 0.04


def gpu_hours(config: PreTrainedConfig, flops: float) -> float:
    """Hours on one H200; on an H100, whose arithmetic is as fast and whose memory is slower, some more.

    FLOPs ÷ the FLOPs a second that were measured at the nearest widths: training steps of the paper's shapes, bfloat16,
    not compiled (results/corpus/raw), tokens a second × training FLOPs a token by `cocomix.model.accounting`. Between
    two widths it is interpolated. A run beyond the widest is assumed to do no better than it, one below the narrowest
    no worse: larger models use a GPU better, so the first takes less than is said and the second more.
    """
    measured = _WITH_CONCEPTS if isinstance(config, CoCoMixConfig) else _PLAIN
    return flops / float(np.interp(config.hidden_size, list(measured), list(measured.values()))) / 3600


def _planned(recipe: RunConfig) -> Plan:
    """With the sizes of data and labels where these are there already."""
    data = open_data(recipe) if all(map(is_there, recipe.data_folders)) else None
    if data is None or not recipe.label_folders or not all(map(is_there, recipe.label_folders)):
        return plan_run(recipe, data)
    labels = open_labels(recipe, data)
    return plan_run(recipe, data, labels.first if labels else labels_to_match(recipe))


def seconds_per_token(recipe: RunConfig, seconds: float) -> float | str:
    """Of training on this machine, evaluations left out, measured for so many seconds; or why it was not measured."""
    plan = _planned(recipe)
    found = measure_steps(recipe, plan, seconds)
    return found if isinstance(found, str) else _per_token(recipe, plan, found)


def _per_token(recipe: RunConfig, plan: Plan, found: StepSpeed) -> float:
    """Seconds, on average over the run; those of losses beside the model are to the model's as their FLOPs are."""
    model = plan.accounting.training_flops_per_token
    slower = training_flops(model, _beside(recipe, plan), _PARTS) / (model * _PARTS)
    arguments = training_arguments(recipe, Path("checkpoints"), plan.block_size, plan.train_blocks)
    step = tokens_per_step(arguments, plan.block_size)
    return slower * found.seconds(step // plan.block_size) / step


def _here(recipe: RunConfig, plan: Plan, tokens: int | None, seconds: float) -> dict[str, Any]:
    """Measured speed, and the hours that follow."""
    found = measure_steps(recipe, plan, seconds)
    if isinstance(found, str):
        return {"hours on this machine": f"not measured: {found}"}
    rate = 1 / _per_token(recipe, plan, found)
    device = default_device()
    where = f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else str(device)
    distils = recipe.distillation is not None and not recipe.target_folders
    taught = distils or recipe.predicts_hidden or (recipe.has_concepts and recipe.online_labels is not None)
    return {
        "tokens per second on this machine": round(rate),
        "measured": f"{found.steps} steps of {found.blocks} blocks on {where}, random tokens"
        + (", the losses of auxiliary added by their FLOPs" if recipe.auxiliary else ""),
        "hours on this machine": "the data's" if tokens is None else float(f"{tokens / rate / 3600:.3g}"),
        "left out of hours": "evaluations and the teacher beside it" if taught else "evaluations",
    }


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
    trained = parameters + _parameters(_beside(recipe, plan))
    room["GB of checkpoints, at most"] = trained * _ADAM_BYTES * kept / _GB
    room["GB of the finished run"] = parameters * _WEIGHT_BYTES / _GB
    return {name: float(f"{value:.2g}") for name, value in room.items()} | {
        "GB free here": round(shutil.disk_usage(Path.cwd()).free / _GB, 1)
    }


def _id_bytes(count: int) -> int:
    return 2 if count <= 2**16 else 4


def measure_steps(recipe: RunConfig, plan: Plan, seconds: float) -> StepSpeed | str:
    """Train on random tokens for about so long, building the model not counted.

    Returns:
        What was measured, or why nothing was.
    """
    device = default_device()
    bf16 = bool(recipe.training.get("bf16"))
    needed = STATE_BYTES * plan.accounting.total_parameters
    needed += activation_bytes(plan.config, batch_size=1, block_size=plan.block_size, bf16=bf16)
    if (free := available_memory(device)) is not None and needed > free:
        return f"it takes {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} are free"
    flops = plan.accounting.training_flops_per_token * plan.block_size
    if device.type == "cpu":
        choose_threads()
        least = flops / (products_per_second(torch.get_num_threads()) * _PRODUCT_FLOPS)  # in float32
        if least > (20 if bf16 else 3) * seconds:
            return f"a step of one block would take more than {least:,.0f} s on this CPU"
    model = build_model(plan.config, recipe.model.attn_implementation).to(device)
    wanted = int(recipe.training.get("per_device_train_batch_size", 8))
    try:
        found = _timed(recipe, plan, model, 1, seconds / 3)
        blocks = min(wanted, math.floor(seconds / 3 / found.seconds(1)))
        return _timed(recipe, plan, model, blocks, seconds * 2 / 3) if blocks > 1 else found
    except torch.OutOfMemoryError:
        return f"a micro-batch of {wanted} blocks does not fit into the memory of {device}"


def _timed(recipe: RunConfig, plan: Plan, model: PreTrainedModel, blocks: int, seconds: float) -> StepSpeed:
    alone = {name: value for name, value in recipe.training.items() if name not in _DROPPED}
    alone |= {**_ALONE, "per_device_train_batch_size": blocks}
    changes = {"tokens": None, "batch_tokens": None, "training": alone}
    with TemporaryDirectory() as folder:
        arguments = training_arguments(recipe.model_copy(update=changes), Path(folder), plan.block_size)
        trainer = CoCoMixTrainer(model=model, args=arguments)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
    prepared, optimizer = trainer.accelerator.prepare(trainer.model, trainer.create_optimizer())
    batch = _random_batch(recipe, plan, blocks)
    steps: list[float] = []
    updates: list[float] = []
    began = ended = _now()
    while not steps or ended - began + steps[-1] <= seconds:
        started = ended
        trainer.training_step(prepared, batch)
        if arguments.max_grad_norm:
            trainer.accelerator.clip_grad_norm_(prepared.parameters(), arguments.max_grad_norm)
        updating = _now()
        optimizer.step()
        ended = _now()
        optimizer.zero_grad()
        steps.append(ended - started)
        updates.append(ended - updating)
    steps, updates = steps[1:] or steps, updates[1:] or updates
    update = sum(updates) / len(updates)
    return StepSpeed(len(steps), blocks, max(sum(steps) / len(steps) - update, 1e-9) / blocks, update)


def _random_batch(recipe: RunConfig, plan: Plan, blocks: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(plan.config.vocab_size, (blocks, plan.block_size))
    batch = {"input_ids": ids, "labels": ids}
    if isinstance(plan.config, CoCoMixConfig) and recipe.has_concepts:
        made = None if recipe.labels is None else recipe.labels.labeller
        k = 4 if made is None else made.k
        batch["concept_labels"] = torch.randint(plan.config.num_concepts, (*ids.shape, k))
    return batch


def _now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
