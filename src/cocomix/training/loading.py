"""Batches for one process: blocks joined with what is stored of them, in an order that is computed and not drawn."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from torch import Tensor
from torch.utils.data import Dataset, Subset
from transformers import TrainingArguments
from transformers.trainer_utils import seed_worker

from cocomix.concepts import drop_without_target
from cocomix.data import TRAIN, DocumentBlocks, MixedData, Tokens
from cocomix.labelling import Concatenated
from cocomix.model.targets import check_label_shape
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training.arguments import steps_per_epoch
from cocomix.training.objectives import Objective, in_force
from cocomix.training.order import BlockOrder, Reading, StepBatches
from cocomix.training.recipe import RunConfig

COLUMNS: dict[str, torch.dtype | None] = {
    **dict.fromkeys(("input_ids", "labels", "attention_mask", "position_ids"), torch.int64),
    **dict.fromkeys(("concept_labels", "teacher_ids", "teacher_lengths"), torch.int64),
    "teacher_log_probs": None,
}
"""What a batch is made of, and its types; None leaves a column's as it is."""
_SENTENCE = re.compile(r"DataLoader worker.*^cocomix(?:\.\w+)+: (.*)$", re.DOTALL | re.MULTILINE)


class JoinedBlocks(Dataset[dict[str, Tensor]]):
    """Token blocks joined with what is stored of them: row i has `input_ids` [seq] and, say, `concept_labels`.

    `stored` has further rows of the same blocks, or of the first ones only, by one of their columns.
    """

    def __init__(self, tokens: Any, stored: Mapping[str, Any]) -> None:
        self.tokens, self.stored = tokens, dict(stored)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        """A row, by a number or by a `Reading`."""
        index, needs = index if isinstance(index, Reading) else (index, self.stored.keys())
        row = dict(self.tokens[index])
        for column, blocks in self.stored.items():
            if column in needs:
                row |= blocks[index]
        return row


def joined_blocks(
    recipe: RunConfig, data: Tokens, beside: Mapping[str, Concatenated[Any] | None], name: str, limit: int | None
) -> Dataset[Any]:
    """A split's blocks, joined with labels and probabilities `beside` them, by one of the columns of each.

    With a `limit` only the first blocks; of a mixture about so many, of each corpus its share.
    """
    scattered = name == TRAIN
    blocks: Dataset[Any] = data.split(name, scattered=scattered)
    if recipe.document_masks:
        blocks = DocumentBlocks(blocks, data.manifest.eos_token_id, data.manifest.bos_token_id)
    found = {column: stored for column, stored in beside.items() if stored is not None}
    if found:
        blocks = JoinedBlocks(blocks, {of: stored.split(name, scattered=scattered) for of, stored in found.items()})
    if limit is not None and limit < len(blocks):  # type: ignore[arg-type]
        chosen = data.first_blocks(name, limit) if isinstance(data, MixedData) else range(limit)
        blocks = Subset(blocks, chosen)
    return blocks


def collate_blocks(rows: Sequence[Mapping[str, Any]], own: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Stack dataset rows into a batch; `labels` are the tokens, padding left out, unless the rows bring their own.

    Concept labels of positions without a target are left out.

    Args:
        rows: each with `input_ids` [seq] and, optionally, `labels` and `position_ids` [seq], `concept_labels`
            [seq, k_attr], `teacher_ids` [seq, K] and `teacher_lengths` [seq], integers of any kind, and
            `teacher_log_probs` [seq, K] or [seq].
        own: further columns of numbers, of objectives from outside.

    Returns:
        int64 tensors [batch, …], but for `teacher_log_probs` and the further columns, which stay as they are.

    Raises:
        CoCoMixError: there are no `input_ids`, or they are of different lengths, or concept labels of another shape.
    """
    if "input_ids" not in rows[0]:
        raise CoCoMixError(
            "a row of the data set has no input_ids; turn its text into tokens, in blocks of one length."
        )
    if len(lengths := {len(row["input_ids"]) for row in rows}) > 1:
        raise CoCoMixError(
            f"the rows of a batch have {min(lengths)} to {max(lengths)} input_ids; cut the text into blocks of one "
            "length, or fill shorter rows up and give all of them an attention_mask, 0 at what was filled up."
        )
    rows = [_with_labels(row) for row in rows]
    batch: dict[str, Any] = {
        name: torch.stack([torch.as_tensor(row[name], dtype=COLUMNS.get(name)) for row in rows])
        for name in rows[0]
        if name in COLUMNS or name in own
    }
    if "concept_labels" in batch:
        check_label_shape(batch["concept_labels"], batch["input_ids"])  # other shapes might be broadcast to this one
        batch["concept_labels"] = drop_without_target(batch["concept_labels"], batch["labels"])
    return batch


def _with_labels(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its `labels`: where it has none, the tokens, `IGNORE` in place of padding."""
    tokens, mask = torch.as_tensor(row["input_ids"], dtype=COLUMNS["labels"]), row.get("attention_mask")
    tokens = tokens if mask is None else tokens.masked_fill(torch.as_tensor(mask) == 0, IGNORE)
    return {"labels": tokens, **row}


class PaddedBlocks(Dataset[dict[str, Tensor]]):
    """Blocks followed by as many without a target as make the number a multiple of `multiple`."""

    def __init__(self, blocks: Any, multiple: int) -> None:
        self.blocks, self.multiple = blocks, multiple

    def __len__(self) -> int:
        return math.ceil(len(self.blocks) / self.multiple) * self.multiple

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        number = index.block if isinstance(index, Reading) else index
        last = len(self.blocks) - 1
        row = _with_labels(self.blocks[index if number <= last else last])
        if number > last:
            targets = row.keys() & {"labels", "concept_labels"}
            row |= {name: torch.full_like(torch.as_tensor(row[name]), IGNORE) for name in targets}
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


def columns_read(
    blocks: Any, objectives: Sequence[Objective], arguments: TrainingArguments, total: int
) -> Callable[[int, int], frozenset[str]] | None:
    """What the objectives still read in the step of an epoch's batch, of `total` steps; `None` for all, to the end."""
    if not isinstance(blocks, JoinedBlocks):
        return None
    in_epoch = steps_per_epoch(arguments, len(blocks))

    def needs(epoch: int, batch: int) -> frozenset[str]:
        step = epoch * in_epoch + batch // arguments.gradient_accumulation_steps
        return frozenset().union(*(one.needs for one in in_force(objectives, step, total)))

    return needs


def ordered_loader(
    blocks: Any,
    order: BlockOrder,
    collate: Callable[[Any], Any],
    arguments: TrainingArguments,
    needs: Callable[[int, int], frozenset[str]] | None = None,
    reached: Callable[[int, int], None] | None = None,
) -> DataLoaderShard:
    """This process's part of the training batches, on its device; see `StepBatches` for `needs` and `reached`."""
    processes = arguments.world_size
    batches = StepBatches(
        order,
        arguments.train_batch_size,
        processes=processes,
        process=arguments.process_index,
        drop_last=arguments.dataloader_drop_last,
        needs=needs,
        reached=reached,
    )
    workers = arguments.dataloader_num_workers
    return DataLoaderShard(
        blocks if processes == 1 else PaddedBlocks(blocks, processes),
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
