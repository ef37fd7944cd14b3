"""`TrainingArguments` from a recipe: the paper's settings as defaults, every field open under `training:`."""

import dataclasses
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.training_args import OptimizerNames
from transformers.utils import is_torch_tf32_available

from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import meant
from cocomix.training.callbacks import TENSORBOARD, trackers
from cocomix.training.optimizers import MUON, muon
from cocomix.training.recipe import RunConfig

logger = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {
    # The paper's (method: section 6): AdamW, β = (0.9, 0.95), decay 0.1, clip 1, warm-up 1/300, cosine to 10%.
    "learning_rate": 6e-4,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    # Our choices: one pass over the data, in an order shared by all arms.
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "seed": 0,
    "logging_steps": 10,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "save_total_limit": 2,
    "project": "cocomix",
    "disable_tqdm": True,
    "logging_nan_inf_filter": False,  # it waits for the device every step, and hides what it should show
    "ddp_find_unused_parameters": False,  # there are none, and looking for them takes a pass over the graph every step
}
_DECAYED = 0.2  # share of the steps in which `warmup_stable_decay` decays (our choice, as common in its papers)
_OURS = (
    *("output_dir", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "remove_unused_columns"),
    *("logging_nan_inf_filter", "train_sampling_strategy", "length_column_name", "local_rank"),
)
"""Fields that a recipe cannot set."""
_LIGER = "Liger knows no CoCoMix model; the heads are fused already"
_PREDICTIONS = "evaluation computes losses and keeps no predictions"
_PRECISION = "evaluation runs in the training precision, so that arms that train alike are evaluated alike"
_PUSH = "push the finished run with `cocomix push` or `cocomix export --push`"
REFUSED: dict[str, str] = {
    "label_smoothing_factor": "it would change the loss that arms are compared by",
    "average_tokens_across_devices": "losses are averages over the targets of all processes",
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), _PRECISION),
    "use_cache": "training caches no keys and values",
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), _LIGER),
    "auto_find_batch_size": "tokens of a step would change; set per_device_train_batch_size, or batch_tokens",
    "accelerator_config": "batches come in an order of ours, the same for any number of processes",
    "parallelism_config": "sharding is by training.fsdp",
    **dict.fromkeys(("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"), _PREDICTIONS),
    **dict.fromkeys(("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"), _PREDICTIONS),
    **dict.fromkeys(("label_names", "compute_metrics", "preprocess_logits_for_metrics"), _PREDICTIONS),
    "save_only_model": "a run goes on from its optimizer, too",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C write a checkpoint anyway",
    "debug": "its hooks cannot read what the heads return",
    "skip_memory_metrics": "memory is not logged; `cocomix plan` estimates it",
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo"), _PUSH),
    **dict.fromkeys(("hub_always_push", "hub_revision"), _PUSH),
    "compute_loss_func": "the loss is that of the objectives; write one (`cocomix.training.objectives`)",
    "model_init": "objectives' heads belong to one model; give the model",
}
"""Fields of `TrainingArguments`, and arguments of `Trainer`, that are not obeyed, with the reason; all others are."""
_SCALARS = (bool, int, float, bool | None, int | None, float | None)
_AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def training_arguments(
    config: RunConfig,
    output_dir: Path,
    block_size: int,
    train_blocks: int | None = None,
    sharding: Mapping[str, Any] | None = None,
) -> TrainingArguments:
    """Build the Trainer's arguments: a recipe's `training` over the defaults, its `tokens` as `max_steps`.

    Args:
        output_dir: folder for checkpoints.
        train_blocks: blocks of the training split, to know where epochs end; `None` where they are not there yet.
        sharding: the fields that `sharding_asked` found to be asked for.

    Raises:
        CoCoMixError: `training:` names an unknown field, or transformers refuses a value; the data is smaller than one
            batch of whole blocks.
    """
    values = {**DEFAULTS, **_checked(config.training), **(sharding or {})}
    if "lr_scheduler_kwargs" not in config.training and "min_lr" not in str(values["lr_scheduler_type"]):
        values["lr_scheduler_kwargs"] = None  # those of `DEFAULTS` are of schedules that end at a least rate
    told = trackers(config.training)
    values["report_to"] = [name for name in told if name != TENSORBOARD]  # its files are the run's own
    if not torch.accelerator.is_available():
        values["use_cpu"] = True
    if is_torch_tf32_available():
        values.setdefault("tf32", True)  # for what autocast leaves in float32, and for runs in float32
    if (wanted := config.batch_tokens) is not None:
        micro_batch, processes = values["per_device_train_batch_size"], int(os.environ.get("WORLD_SIZE", 1))
        values["gradient_accumulation_steps"] = accumulation_steps(wanted, block_size, micro_batch, processes)
    with_muon = values.get("optim") == MUON and values.pop("optim")  # transformers has no name for it
    try:
        arguments = TrainingArguments(output_dir=str(output_dir), remove_unused_columns=False, **values)
    except (ValueError, TypeError, ImportError) as error:
        raise CoCoMixError(f"training: {' '.join(str(error).split())}") from error
    if with_muon:
        muon(arguments)  # so that what is wrong with its settings is said now
        arguments.optim = MUON
    if arguments.n_gpu > 1:  # the Trainer would wrap the model in `DataParallel`, which our outputs do not survive
        logger.warning(
            f"one of {arguments.n_gpu} GPUs is used; for all of them start a process per GPU: `torchrun --standalone "
            f"--nproc-per-node {arguments.n_gpu} -m cocomix train …`"
        )
        arguments._n_gpu = 1
    epoch = None if train_blocks is None else epoch_blocks(arguments, train_blocks)
    if config.tokens is not None:
        blocks = math.ceil(config.tokens / block_size)
        passes, rest = (0, blocks) if epoch is None else divmod(blocks, epoch)
        arguments.max_steps = passes * _steps(arguments, epoch or 0) + _steps(arguments, rest)
    steps = arguments.max_steps if train_blocks is None else total_steps(arguments, train_blocks)
    if steps <= 0 and train_blocks is not None:
        raise CoCoMixError("the run would not train a single step; set tokens or raise training.num_train_epochs.")
    if steps > 0:
        _set_from_steps(arguments, config.training, steps)
        _check_schedule(arguments, steps)
    return arguments


def refuse_unheeded(given: Mapping[str, Any]) -> None:
    """Refuse the arguments of `Trainer`, and the fields of its `args`, that would be ignored."""
    asked = {name: given[name] for name in REFUSED if given.get(name) is not None}
    if (arguments := given.get("args")) is not None:
        usual = TrainingArguments(str(arguments.output_dir), use_cpu=arguments.use_cpu)
        fields = REFUSED.keys() & {field.name for field in dataclasses.fields(arguments)}
        asked |= {name: value for name in fields if (value := getattr(arguments, name)) != getattr(usual, name)}
    for name, value in asked.items():
        raise CoCoMixError(f"{name} is {value!r}, which cocomix does not obey: {REFUSED[name]}; leave it out.")


def _checked(training: dict[str, Any]) -> dict[str, Any]:
    """The recipe's fields with their types checked, which `TrainingArguments` does not do."""
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    types = get_type_hints(TrainingArguments)
    checked = dict(training)
    for name, value in training.items():
        if name in _OURS:
            raise CoCoMixError(f"training.{name} is set by cocomix itself; remove it from the recipe.")
        if name in REFUSED:
            raise CoCoMixError(f"training.{name} is not obeyed: {REFUSED[name]}; leave it out.")
        if name == "hub_token":
            raise CoCoMixError(
                f"training.{name} would be written into every copy of the recipe; put it into the environment instead "
                "(HF_TOKEN)."
            )
        if name not in known:
            near = meant(name, sorted(known))
            raise CoCoMixError(f"training.{name} is not a field of transformers.TrainingArguments{near}.")
        if value is False and name.endswith("_strategy"):
            checked[name] = "no"  # which YAML takes for false
        if types[name] in _SCALARS:
            try:
                checked[name] = TypeAdapter(types[name]).validate_python(value)
            except ValidationError as error:
                raise CoCoMixError(f"training.{name}: {error.errors()[0]['msg']}, not {value!r}.") from None
        if isinstance(checked[name], float) and not math.isfinite(checked[name]):
            raise CoCoMixError(f"training.{name} is {value}; it must be a finite number.")
        if name == "optim" and str(value) not in (names := [MUON, *(known.value for known in OptimizerNames)]):
            raise CoCoMixError(
                f"training.optim: {value!r} is neither {MUON} nor an optimizer of transformers"
                f"{meant(str(value), names)}."
            )
        if name in _AT_LEAST_ONE and checked[name] < 1:
            raise CoCoMixError(f"training.{name} is {value}; it must be at least 1.")
    if checked.get("fp16") and not torch.accelerator.is_available():
        raise CoCoMixError("training.fp16 needs a GPU; leave it out, or set training.bf16.")
    return checked


def accumulation_steps(batch_tokens: int, block_size: int, micro_batch: int, processes: int) -> int:
    """Micro-batches of a process that make up a step of so many tokens; refused where they do not come out even."""
    steps, rest = divmod(batch_tokens, processes * micro_batch * block_size)
    if rest == 0:
        return steps
    share, odd = divmod(batch_tokens, processes * block_size)
    if odd:
        remedy = f"set it to a multiple of {processes * block_size:,}"
    else:
        fitting = max(size for size in range(1, min(micro_batch, share) + 1) if share % size == 0)
        remedy = f"set training.per_device_train_batch_size to {fitting}"
    raise CoCoMixError(
        f"batch_tokens is {batch_tokens:,}, which is not a multiple of {processes} process{'es' * (processes > 1)} × "
        f"{micro_batch} blocks × {block_size:,} tokens; {remedy}."
    )


def tokens_per_step(arguments: TrainingArguments, block_size: int) -> int:
    """Tokens of one optimizer step, all processes together."""
    return _blocks_per_step(arguments) * block_size


def tokens_after(steps: int, arguments: TrainingArguments, train_blocks: int | None, block_size: int) -> int:
    """Training tokens of so many optimizer steps: the step that ends an epoch has only the blocks that are left.

    Where these are not counted (`None`: a stream), every step is taken for a whole one.
    """
    if train_blocks is None:
        return steps * tokens_per_step(arguments, block_size)
    epoch = epoch_blocks(arguments, train_blocks)
    passes, rest = divmod(steps, steps_per_epoch(arguments, train_blocks))
    return (passes * epoch + min(rest * _blocks_per_step(arguments), epoch)) * block_size


def total_steps(arguments: TrainingArguments, train_blocks: int) -> int:
    """Optimizer steps of a run: `max_steps`, or else those of `num_train_epochs` passes over the data."""
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    steps: int = math.ceil(arguments.num_train_epochs * steps_per_epoch(arguments, train_blocks))
    return steps


def steps_per_epoch(arguments: TrainingArguments, train_blocks: int) -> int:
    """Optimizer steps of one pass over the data."""
    return _steps(arguments, epoch_blocks(arguments, train_blocks))


def _blocks_per_step(arguments: TrainingArguments) -> int:
    return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)


def epoch_blocks(arguments: TrainingArguments, train_blocks: int) -> int:
    """Blocks of one pass over the data."""
    batch = arguments.train_batch_size * arguments.world_size
    blocks = train_blocks - train_blocks % batch if arguments.dataloader_drop_last else train_blocks
    if blocks == 0:
        raise CoCoMixError(
            f"the training split has {train_blocks} blocks, less than one batch of {batch}; lower "
            "training.per_device_train_batch_size."
        )
    return int(blocks)


def _steps(arguments: TrainingArguments, blocks: int) -> int:
    return math.ceil(blocks / _blocks_per_step(arguments))


def _set_from_steps(arguments: TrainingArguments, given: dict[str, Any], steps: int) -> None:
    """Defaults that depend on the run's length: 20 evaluations, 10 checkpoints, a warm-up of 1/300 (at least 1)."""
    usual = {"eval_steps": math.ceil(steps / 20), "save_steps": math.ceil(steps / 10)}
    usual["warmup_steps"] = max(1, round(steps / 300))
    for name in usual.keys() - given.keys():
        setattr(arguments, name, usual[name])
    decays = arguments.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY
    if decays and "num_decay_steps" not in (arguments.lr_scheduler_kwargs or {}):
        decay = max(1, round(_DECAYED * steps))
        arguments.lr_scheduler_kwargs = {**(arguments.lr_scheduler_kwargs or {}), "num_decay_steps": decay}


def _check_schedule(arguments: TrainingArguments, steps: int) -> None:
    """Make the learning rate's schedule once, so that what it misses is said before a run begins."""
    name, kwargs = arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs or {}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    try:
        get_scheduler(name, optimizer, arguments.get_warmup_steps(steps), steps, scheduler_specific_kwargs=kwargs)
    except (TypeError, ValueError) as error:
        raise CoCoMixError(
            f"training.lr_scheduler_type: {name.value} cannot be made with lr_scheduler_kwargs {kwargs}: {error}."
        ) from None
