"""How fast this machine trains a recipe's model: a few real steps of the real student, on random tokens.

They are steps of `CoCoMixTrainer` with the recipe's arithmetic and optimizer, so nothing has to be prepared first. Left
out are compilation, which alone takes minutes, teachers that run while training, and other processes.
"""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from cocomix.model import CoCoMixConfig
from cocomix.model.accounting import build_model
from cocomix.model.memory import STATE_BYTES, activation_bytes
from cocomix.runtime.device import available_memory, choose_threads, default_device, products_per_second
from cocomix.training.arguments import training_arguments
from cocomix.training.recipe import RunConfig
from cocomix.training.run_plan import Plan
from cocomix.training.trainer import CoCoMixTrainer

logger = logging.getLogger(__name__)

_BLOCKS = 4096  # of the random data: more than are read
_PRODUCT_FLOPS = 2 * 512**3  # of the product that `products_per_second` counts
_DROPPED = ("torch_compile", "fsdp", "fsdp_config", "deepspeed", "max_steps", "num_train_epochs", "run_name")
_ALONE = {
    "gradient_accumulation_steps": 1,
    "max_steps": 10**6,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "dataloader_num_workers": 0,
}
"""Fields of `training` that leave a step of one micro-batch and nothing else."""


@dataclass(frozen=True)
class StepSpeed:
    """What was measured.

    Attributes:
        steps: that were timed, the first left out.
        blocks: of a micro-batch.
        seconds_per_block: forward and backward pass.
        seconds_per_update: of the optimizer.
    """

    steps: int
    blocks: int
    seconds_per_block: float
    seconds_per_update: float

    def seconds(self, blocks: int) -> float:
        """Of an optimizer step of so many blocks."""
        return blocks * self.seconds_per_block + self.seconds_per_update


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
    kept = {name: value for name, value in recipe.training.items() if name not in _DROPPED}
    alone = {**kept, **_ALONE, "per_device_train_batch_size": blocks}
    changes = {"tokens": None, "batch_tokens": None, "training": alone}
    watch = _Watch(seconds)
    with TemporaryDirectory() as folder:
        trainer = CoCoMixTrainer(
            model=model,
            args=training_arguments(recipe.model_copy(update=changes), Path(folder), plan.block_size, _BLOCKS),
            train_dataset=_RandomBlocks(recipe, plan),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    steps, updates = watch.steps[1:] or watch.steps, watch.updates[1:] or watch.updates
    update = sum(updates) / len(updates)
    return StepSpeed(len(steps), blocks, max(sum(steps) / len(steps) - update, 1e-9) / blocks, update)


class _RandomBlocks(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, recipe: RunConfig, plan: Plan) -> None:
        self.block_size, self.vocabulary, self.concepts, self.k = plan.block_size, plan.config.vocab_size, 0, 4
        if isinstance(plan.config, CoCoMixConfig) and recipe.has_concepts:
            self.concepts = plan.config.num_concepts
            if recipe.labels is not None and recipe.labels.labeller is not None:
                self.k = recipe.labels.labeller.k

    def __len__(self) -> int:
        return _BLOCKS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        row = {"input_ids": torch.randint(self.vocabulary, (self.block_size,), generator=generator)}
        if self.concepts:
            row["concept_labels"] = torch.randint(self.concepts, (self.block_size, self.k), generator=generator)
        return row


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Times steps and updates, and ends training when the next step would be too long."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.steps: list[float] = []
        self.updates: list[float] = []
        self.began = self.stepped = self.updating = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = self.stepped = _now()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.updating = _now()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.updates.append(_now() - self.updating)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = _now()
        self.steps.append(now - self.stepped)
        self.stepped = now
        control.should_training_stop = now - self.began + self.steps[-1] > self.seconds


def _now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
