"""`TrainingArguments` from a recipe: the paper's settings as defaults, every field open under `training:`."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from cocomix.config import RunConfig
from cocomix.errors import CoCoMixError

__all__ = ["tokens_per_step", "training_arguments"]

_DEFAULTS: dict[str, Any] = {
    # The paper's (method: section 6): AdamW, β = (0.9, 0.95), decay 0.1, clip 1, warm-up 1/300, cosine to 10%.
    "learning_rate": 6e-4,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    # Our choices: deterministic data order shared by all arms, files rather than services.
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "seed": 0,
    "logging_steps": 10,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "save_total_limit": 2,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_nan_inf_filter": False,  # it waits for the device every step, and hides what it should show
}
_EVALUATIONS, _CHECKPOINTS = 20, 10
_OURS = ("output_dir", "do_train", "do_eval", "resume_from_checkpoint", "remove_unused_columns")


def training_arguments(config: RunConfig, output_dir: Path, block_size: int) -> TrainingArguments:
    """Build the Trainer's arguments.

    Args:
        config: the recipe; its `training` overrides the defaults, its `tokens` become `max_steps`.
        output_dir: folder for checkpoints.
        block_size: tokens per block, to turn tokens into steps.

    Raises:
        CoCoMixError: `training:` names an unknown field, or transformers refuses a value.
    """
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    for name in config.training:
        if name in _OURS:
            raise CoCoMixError(f"training.{name} is set by cocomix itself; remove it from the recipe.")
        if name not in known:
            raise CoCoMixError(f"training.{name} is not a field of transformers.TrainingArguments; check its spelling.")
    values = {**_DEFAULTS, **config.training}
    if not torch.accelerator.is_available():
        values["use_cpu"] = True
    try:
        arguments = TrainingArguments(output_dir=str(output_dir), remove_unused_columns=False, **values)
    except (ValueError, TypeError, ImportError) as error:
        raise CoCoMixError(f"training: {' '.join(str(error).split())}") from error
    if config.tokens is not None:
        arguments.max_steps = math.ceil(config.tokens / tokens_per_step(arguments, block_size))
    if arguments.max_steps > 0:
        _set_from_steps(arguments, config.training)
    return arguments


def tokens_per_step(arguments: TrainingArguments, block_size: int) -> int:
    """Tokens of one optimizer step, all processes together."""
    blocks = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return int(blocks) * block_size


def _set_from_steps(arguments: TrainingArguments, given: dict[str, Any]) -> None:
    """Defaults that depend on the run's length: 20 evaluations, 10 checkpoints, a warm-up of 1/300 (at least 1)."""
    steps = arguments.max_steps
    if "eval_steps" not in given:
        arguments.eval_steps = math.ceil(steps / _EVALUATIONS)
    if "save_steps" not in given:
        arguments.save_steps = math.ceil(steps / _CHECKPOINTS)
    if "warmup_steps" not in given:
        arguments.warmup_steps = max(1, round(steps / 300))
