"""Batches of blocks for one process, in an order that is computed and not drawn."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from transformers import TrainingArguments
from transformers.trainer_utils import seed_worker

from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training.arguments import steps_per_epoch
from cocomix.training.joined_blocks import JoinedBlocks
from cocomix.training.objectives import Objective, in_force
from cocomix.training.order import BlockOrder, StepBatches

_SENTENCE = re.compile(r"DataLoader worker.*^cocomix(?:\.\w+)+: (.*)$", re.DOTALL | re.MULTILINE)


class PaddedBlocks(Dataset[dict[str, Tensor]]):
    """Blocks followed by as many without a target as make the number a multiple of `multiple`."""

    def __init__(self, blocks: Any, multiple: int) -> None:
        self.blocks, self.multiple = blocks, multiple

    def __len__(self) -> int:
        return math.ceil(len(self.blocks) / self.multiple) * self.multiple

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = dict(self.blocks[min(index, len(self.blocks) - 1)])
        row.setdefault("labels", row["input_ids"])
        if index >= len(self.blocks):
            targets = row.keys() & {"labels", "concept_labels"}
            row |= {name: torch.full_like(row[name], IGNORE) for name in targets}
        return row


@contextmanager
def told_by_workers() -> Iterator[None]:
    """Raise what a loader worker refused as its sentence alone, without the traceback PyTorch puts around it."""
    try:
        yield
    except CoCoMixError as error:
        told = _SENTENCE.search(str(error))
        if told is None:
            raise
        raise CoCoMixError(told.group(1).strip()) from None


def views_of(
    blocks: Any, objectives: Sequence[Objective], arguments: TrainingArguments, total: int
) -> dict[tuple[int, int], Any]:
    """The blocks by the epoch and batch from which they are read: fewer columns, once no objective needs them.

    Args:
        blocks: of one epoch; of other data sets than `JoinedBlocks` all columns are read to the end.
        arguments: how many blocks make a step.
        total: steps of the run.
    """
    if not isinstance(blocks, JoinedBlocks):
        return {(0, 0): blocks}
    views = {}
    for step in sorted({0, *(one.weight.steps(total) for one in objectives)}):
        epoch, within = divmod(step, steps_per_epoch(arguments, len(blocks)))
        needs = frozenset().union(*(one.needs for one in in_force(objectives, step, total)))
        views[epoch, within * arguments.gradient_accumulation_steps] = blocks.only(needs)
    return views


def ordered_loader(
    views: Mapping[tuple[int, int], Any],
    order: BlockOrder,
    collate: Callable[[Any], Any],
    arguments: TrainingArguments,
    reached: Callable[[int, int], None] | None = None,
) -> DataLoaderShard:
    """This process's part of the training batches, on its device.

    Args:
        views: all blocks, numbered as in `order`, by the epoch and batch from which they are read so.
        order: in which they come.
        collate: makes a batch of rows.
        arguments: batch size, processes, device and the loader's workers.
        reached: see `StepBatches`.
    """
    processes = arguments.world_size
    parts = [blocks if processes == 1 else PaddedBlocks(blocks, processes) for blocks in views.values()]
    batches = StepBatches(
        order,
        arguments.train_batch_size,
        processes=processes,
        process=arguments.process_index,
        drop_last=arguments.dataloader_drop_last,
        reached=reached,
        views=list(views),
        span=len(parts[0]),
    )
    workers = arguments.dataloader_num_workers
    return DataLoaderShard(
        parts[0] if len(parts) == 1 else ConcatDataset(parts),
        device=arguments.device,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=arguments.dataloader_pin_memory,
        persistent_workers=arguments.dataloader_persistent_workers and workers > 0,
        multiprocessing_context=arguments.dataloader_multiprocessing_context if workers > 0 else None,
        in_order=arguments.dataloader_in_order,
        prefetch_factor=arguments.dataloader_prefetch_factor if workers > 0 else None,
        worker_init_fn=partial(seed_worker, num_workers=workers, rank=arguments.process_index),
    )
