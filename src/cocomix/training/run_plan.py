"""What a recipe amounts to before it is trained: the model's configuration, its parameters and its FLOPs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, TrainingArguments

from cocomix.data import Tokens
from cocomix.labelling import Labels
from cocomix.model import Accounting, CoCoMixConfig, account
from cocomix.model.accounting import build_model
from cocomix.model.memory import STATE_BYTES, activation_bytes
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.arguments import tokens_after, tokens_per_step, total_steps, training_arguments
from cocomix.training.online import OnlineLabels
from cocomix.training.pretrained import check_pretrained
from cocomix.training.recipe import RunConfig
from cocomix.training.student import Vocabulary, model_config


@dataclass(frozen=True)
class Plan:
    """What a recipe amounts to, without training it.

    Attributes:
        config: of the model.
        accounting: parameters and FLOPs per token, attention at the data's block size included.
        block_size: tokens per block.
        train_blocks: blocks of the training split; `None` without data.
    """

    config: PreTrainedConfig
    accounting: Accounting
    block_size: int
    train_blocks: int | None


def plan_run(
    recipe: RunConfig,
    data: Tokens | None = None,
    labels: Labels | OnlineLabels | None = None,
    teacher_hidden_size: int | None = None,
) -> Plan:
    """Check a recipe and count its model's cost, on the meta device.

    Args:
        data: the prepared data of the recipe; without it the recipe must give every size itself.
        labels: its labels, if there are any.
        teacher_hidden_size: of a teacher that runs while training.
    """
    vocabulary = None
    if data is not None:
        vocabulary = Vocabulary(
            data.manifest.vocab_size, data.manifest.eos_token_id, data.manifest.block_size, data.manifest.bos_token_id
        )
    config = model_config(recipe, vocabulary, None if labels is None else labels.num_concepts, teacher_hidden_size)
    if data is not None:
        check_pretrained(recipe, config, data)
    block_size = int(config.max_position_embeddings) if data is None else data.manifest.block_size
    try:
        with torch.device("meta"):
            accounting = account(build_model(config, recipe.model.attn_implementation), block_size)
    except (ValueError, TypeError, ImportError) as error:
        if isinstance(error, CoCoMixError):
            raise
        raise CoCoMixError(f"model: {' '.join(str(error).split())}") from error
    train = None if data is None else data.manifest.splits.get("train")
    return Plan(config, accounting, block_size, None if train is None else train.blocks)


def describe_plan(recipe: RunConfig, plan: Plan) -> dict[str, Any]:
    """Sizes and cost by name, in the order a person asks for them."""
    arguments = training_arguments(recipe, Path("checkpoints"), plan.block_size, plan.train_blocks)
    count = plan.accounting
    step_tokens = tokens_per_step(arguments, plan.block_size)
    steps = max(arguments.max_steps, 0)
    tokens = steps * step_tokens
    if plan.train_blocks is not None:
        steps = total_steps(arguments, plan.train_blocks)
        tokens = tokens_after(steps, arguments, plan.train_blocks, plan.block_size)
    flops = tokens * count.training_flops_per_token
    return {
        "objective": recipe.objective,
        "arm": recipe.arm,
        "model": f"{plan.config.model_type}, d_model {plan.config.hidden_size}, {plan.config.num_hidden_layers} blocks",
        "parameters": count.total_parameters,
        "active parameters": count.active_parameters,
        "training FLOPs per token": count.training_flops_per_token,
        "tokens per step": step_tokens,
        "steps": steps or f"{arguments.num_train_epochs} epochs",
        "tokens": tokens or "the data's",
        **_labelled(recipe, plan, arguments, steps),
        "training FLOPs": flops or "the data's",
        "hours on one H200 or H100, estimated": float(f"{gpu_hours(plan.config, flops):.3g}") or "the data's",
    }


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
    state = STATE_BYTES * plan.accounting.total_parameters
    memory = {"GiB of weights, gradients and optimizer, at most": state}
    if not arguments.gradient_checkpointing:
        kept = activation_bytes(
            plan.config, batch_size=arguments.train_batch_size, block_size=plan.block_size, bf16=arguments.bf16
        )
        memory |= {"GiB of activations, about": kept, "GiB of both": state + kept}
    return {name: float(f"{size / 2**30:.3g}") for name, size in memory.items()}  # of a small model it is 0.04


_PLAIN = {512: 90.0e12, 624: 95.2e12, 1024: 160.7e12, 1072: 142.9e12}  # width: FLOPs a second
_WITH_CONCEPTS = {512: 86.3e12, 1024: 171.8e12}


def gpu_hours(config: PreTrainedConfig, flops: float) -> float:
    """Hours on one H200; on an H100, whose arithmetic is as fast and whose memory is slower, some more.

    FLOPs ÷ the FLOPs a second that were measured at the nearest widths: training steps of the paper's shapes, bfloat16,
    not compiled (results/corpus/raw), tokens a second × training FLOPs a token by `cocomix.model.accounting`. Between
    two widths it is interpolated. A run beyond the widest is assumed to do no better than it, one below the narrowest
    no worse: larger models use a GPU better, so the first takes less than is said and the second more.
    """
    measured = _WITH_CONCEPTS if isinstance(config, CoCoMixConfig) else _PLAIN
    return flops / float(np.interp(config.hidden_size, list(measured), list(measured.values()))) / 3600
