"""Training on a stream: loader workers that share its lanes, and what a checkpoint keeps to go on with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments

from cocomix.data import StreamBlocks, StreamedData
from cocomix.data.stream_blocks import Mark
from cocomix.training.arguments import tokens_per_step
from cocomix.training.loading import told_by_workers

__all__ = ["StreamProgress", "StreamedRun", "WorkedStream"]

_AHEAD = 2
"""Batches that workers hold ready (our choice, as `DataLoader`'s)."""


class WorkedStream(Dataset[dict[str, Any]]):
    """A stream's blocks for one process, made by loader workers.

    The process's blocks go round the workers one by one, so that each worker reads lanes of its own wherever processes
    times workers divide the lanes. Meant to be read in order; any other block starts the workers again.

    Args:
        blocks: of the stream.
        arguments: says which process this is, of how many, and how many workers it has.
    """

    def __init__(self, blocks: StreamBlocks, arguments: TrainingArguments) -> None:
        self.blocks = blocks
        self._step = arguments.world_size
        self._options = {
            "num_workers": arguments.dataloader_num_workers,
            "prefetch_factor": max(1, _AHEAD * arguments.train_batch_size // max(1, arguments.dataloader_num_workers)),
            "multiprocessing_context": arguments.dataloader_multiprocessing_context,
        }
        self._next = -1
        self._rows: Iterator[dict[str, Any]] = iter(())

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As `StreamBlocks`."""
        if index != self._next:
            places = range(index, len(self.blocks), self._step)
            self._rows = iter(DataLoader(self.blocks, batch_size=None, sampler=places, **self._options))
        self._next = index + self._step
        with told_by_workers():
            return next(self._rows)


class StreamProgress:
    """How far every lane was trained on, for checkpoints.

    Args:
        blocks: of the stream.
    """

    def __init__(self, blocks: StreamBlocks) -> None:
        self._blocks = blocks
        self._marks = torch.tensor([Mark(0, lane, 0, 0) for lane in range(blocks.source.lanes)])  # [lanes, 4]

    def take(self, batches: Sequence[dict[str, Any]]) -> None:
        """Note the `reached` of batches that are about to be trained on, and take it out of them."""
        for batch in batches:
            for lane, *mark in batch.pop("reached").tolist():
                self._marks[lane] = torch.tensor(mark)

    def state(self, accelerator: Any) -> list[list[int]]:
        """What to go on from: over all processes the furthest mark of each lane."""
        marks = accelerator.gather(self._marks.to(accelerator.device)).cpu().view(-1, *self._marks.shape)
        furthest = marks[:, :, 0].argmax(0)
        reached: list[list[int]] = marks[furthest, torch.arange(len(furthest))].tolist()
        return reached

    def restore(self, state: Sequence[Sequence[int]]) -> None:
        """Go on from a `state` of the same stream."""
        self._marks = torch.tensor(state)
        self._blocks.start_at(state)


@dataclass(frozen=True)
class StreamedRun:
    """A stream as one run reads it.

    Attributes:
        blocks: as many as the run's steps take.
        progress: of them.
    """

    blocks: Dataset[dict[str, Any]]
    progress: StreamProgress

    @classmethod
    def of(cls, data: StreamedData, arguments: TrainingArguments) -> "StreamedRun":
        """Read a stream for a run of `max_steps`, in the order of its data seed."""
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        blocks = data.blocks(arguments.max_steps * tokens_per_step(arguments, block_size=1), seed)
        worked = WorkedStream(blocks, arguments) if arguments.dataloader_num_workers > 0 else blocks
        return cls(worked, StreamProgress(blocks))
