"""What every measurement shares: batches of blocks, evaluation mode, precision, and per-token losses."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from cocomix.concepts import drop_without_target
from cocomix.model import predicts_concepts
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE

__all__ = ["Batch", "MapDataset", "batches", "count_blocks", "inference", "token_losses"]


class MapDataset(Protocol):
    """A map-style data set of dictionaries: token blocks (`input_ids`) or labels (`concept_labels`)."""

    def __len__(self) -> int:
        """Number of blocks."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """One block."""
        ...


class Batch(NamedTuple):
    """Consecutive blocks.

    Attributes:
        input_ids: tokens. [batch, seq], int64
        concept_labels: their labels, or `None` where none were asked for. [batch, seq, k_attr], int64
        targets: the tokens that are predicted, `IGNORE` in place of others. [batch, seq], int64
        position_ids: where documents are kept apart; otherwise `None`. [batch, seq], int64
    """

    input_ids: Tensor
    concept_labels: Tensor | None
    targets: Tensor
    position_ids: Tensor | None = None


def count_blocks(
    model: PreTrainedModel, blocks: MapDataset, labels: MapDataset | None, batch_size: int, limit_blocks: int | None
) -> int:
    """How many blocks a measurement will use, after checking that it can be made at all.

    Raises:
        CoCoMixError: there is no block, a number is not positive, the labels do not belong to these blocks, the model
            has no concepts to compare labels with, or its context is shorter than a block.
    """
    if batch_size < 1:
        raise CoCoMixError(f"batch_size={batch_size} must be at least 1.")
    if limit_blocks is not None and limit_blocks < 1:
        raise CoCoMixError(f"limit_blocks={limit_blocks} must be at least 1; leave it out to use every block.")
    if len(blocks) == 0:
        raise CoCoMixError("there is no block to evaluate on; prepare the data with a larger validation share.")
    if labels is not None:
        if not predicts_concepts(model):
            raise CoCoMixError(
                f"labels were given, but a {type(model).__name__} predicts no concepts; evaluate it without labels."
            )
        if len(labels) != len(blocks):
            raise CoCoMixError(
                f"the labels cover {len(labels)} blocks but the data has {len(blocks)}; label this data set again."
            )
    block_size, context = len(blocks[0]["input_ids"]), model.config.max_position_embeddings
    if block_size < 2:
        raise CoCoMixError(
            f"blocks of {block_size} token hold nothing to predict; prepare the data with longer blocks."
        )
    if block_size > context:
        raise CoCoMixError(
            f"the data's blocks have {block_size} tokens but the model's context is {context}; "
            f"prepare the data with a block size of at most {context}."
        )
    return len(blocks) if limit_blocks is None else min(limit_blocks, len(blocks))


def batches(
    model: PreTrainedModel,
    blocks: MapDataset,
    labels: MapDataset | None,
    *,
    count: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[Batch]:
    """The first `count` blocks in order, `batch_size` at a time, on `device`.

    Rows may bring `labels` and `position_ids` of their own (see `cocomix.data.DocumentBlocks`).

    Raises:
        CoCoMixError: a token is outside the model's vocabulary, or a label names a concept that does not exist.
    """
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        rows = [blocks[index] for index in indices]
        input_ids = torch.stack([row["input_ids"] for row in rows])
        if int(input_ids.max()) >= model.config.vocab_size:
            raise CoCoMixError(
                f"the data holds token {int(input_ids.max())} but the model's vocabulary has {model.config.vocab_size} "
                "entries; evaluate on data prepared with the model's own tokenizer."
            )
        targets = torch.stack([row["labels"] for row in rows]).to(device) if "labels" in rows[0] else None
        positions = torch.stack([row["position_ids"] for row in rows]).to(device) if "position_ids" in rows[0] else None
        input_ids = input_ids.to(device)
        targets = input_ids if targets is None else targets
        if labels is None:
            yield Batch(input_ids, None, targets, positions)
            continue
        concept_labels = torch.stack([labels[index]["concept_labels"] for index in indices])
        if int(concept_labels.max()) >= model.config.num_concepts:
            raise CoCoMixError(
                f"a label names concept {int(concept_labels.max())} but the model has concepts 0 to "
                f"{model.config.num_concepts - 1}; use the labels the model was trained with."
            )
        if bool(((concept_labels < 0) & (concept_labels != IGNORE)).any()):
            raise CoCoMixError(f'a label is negative but not {IGNORE} ("no concept"); label this data set again.')
        concept_labels = drop_without_target(concept_labels.to(device), targets)
        yield Batch(input_ids, concept_labels, targets, positions)


@contextmanager
def inference(model: PreTrainedModel, device: torch.device, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Evaluation mode, no gradients, and matrix products in `dtype` (autocast over float32 weights) inside the block.

    The model is moved to `device`; its training mode is put back at the end.

    Raises:
        CoCoMixError: `dtype` is float32 but the weights are narrower, so that the result would not be float32.
    """
    weights = next(model.parameters()).dtype
    if dtype == torch.float32 and weights != torch.float32:
        raise CoCoMixError(
            f"a float32 evaluation was asked for but the weights are {str(weights).removeprefix('torch.')}; "
            "load the model with dtype=torch.float32."
        )
    was_training = model.training
    model.to(device)
    model.eval()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if dtype != weights:
                stack.enter_context(torch.autocast(device.type, dtype=dtype))
            yield
    finally:
        model.train(was_training)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every next token within a block, in nats.

    One block at a time, so that no second copy of all logits is needed.

    Args:
        logits: next-token logits. [batch, seq, vocab], any float dtype
        targets: the tokens themselves, `IGNORE` in place of those that are not predicted. [batch, seq]

    Returns:
        −log p(x_{t+1} | x_{≤t}) for t = 1 … seq − 1, computed in float32; 0 where x_{t+1} is not predicted.
        [batch, seq − 1], float64, on the CPU
    """
    rows = [
        F.cross_entropy(row[:-1].float(), ids[1:], reduction="none", ignore_index=IGNORE).cpu().double()
        for row, ids in zip(logits, targets, strict=True)
    ]
    return torch.stack(rows)
