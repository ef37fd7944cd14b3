"""Running a model over blocks: evaluation mode, precision, batches, every token's loss, and counts of its concepts."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate
from transformers import PreTrainedModel

from cocomix.concepts import drop_without_target
from cocomix.model import predicts_concepts
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives import recalled_labels

_RECALL_AT = 32  # as the paper's models predict


class MapDataset(Protocol):
    """A map-style data set of dictionaries: token blocks (`input_ids`) or labels (`concept_labels`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class Batch(NamedTuple):
    """Consecutive blocks."""

    input_ids: Tensor  # tokens. [batch, seq], int64
    concept_labels: Tensor | None  # their labels, or `None` where none were asked for. [batch, seq, k_attr], int64
    targets: Tensor  # the tokens that are predicted, `IGNORE` in place of others. [batch, seq], int64
    position_ids: Tensor | None  # where documents are kept apart; otherwise `None`. [batch, seq], int64
    blocks: slice  # which blocks they are

    @property
    def inputs(self) -> dict[str, Any]:
        """What a model's `forward` is given of them, labels apart."""
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, "use_cache": False}


def require_measurable(model: PreTrainedModel, blocks: MapDataset, labels: MapDataset | None, batch_size: int) -> None:
    """Refuse, before any work, blocks, labels and a batch size that this model cannot be measured with."""
    if batch_size < 1:
        raise CoCoMixError(f"{batch_size=} must be at least 1.")
    if len(blocks) == 0:
        raise CoCoMixError("there is no block to evaluate on; prepare the data with a larger validation share.")
    if labels is not None and not predicts_concepts(model):
        raise CoCoMixError(f"a {type(model).__name__} predicts no concepts; evaluate it without labels.")
    if labels is not None and len(labels) != len(blocks):
        raise CoCoMixError(
            f"the labels cover {len(labels)} blocks but the data has {len(blocks)}; label this data set again."
        )
    block_size, context = len(blocks[0]["input_ids"]), model.config.max_position_embeddings
    if not 2 <= block_size <= context:
        raise CoCoMixError(
            f"the data's blocks have {block_size} tokens but this model reads 2 to {context}; prepare the data with "
            f"--block-size {context}."
        )


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

    Rows may bring `labels` and `position_ids` of their own (see `cocomix.data.DocumentBlocks`). Refused are a token
    outside the model's vocabulary, and a label that names a concept which does not exist.
    """
    for start in range(0, count, batch_size):
        chosen = slice(start, min(start + batch_size, count))
        indices = range(count)[chosen]
        rows = {name: each.to(device) for name, each in default_collate([blocks[index] for index in indices]).items()}
        input_ids = rows["input_ids"]
        targets = rows.get("labels", input_ids)
        if (largest := int(input_ids.max())) >= model.config.vocab_size:
            raise CoCoMixError(
                f"the data holds token {largest} but the model's vocabulary has {model.config.vocab_size} entries; "
                "evaluate on data prepared with the model's own tokenizer."
            )
        found = None
        if labels is not None:
            found = default_collate([labels[index]["concept_labels"] for index in indices])
            wrong = found[(found != IGNORE) & ((found < 0) | (found >= model.config.num_concepts))]
            if len(wrong):
                raise CoCoMixError(
                    f"a label names concept {int(wrong[0])} but the model has concepts 0 to "
                    f"{model.config.num_concepts - 1}; use the labels the model was trained with."
                )
            found = drop_without_target(found.to(device), targets)
        yield Batch(input_ids, found, targets, rows.get("position_ids"), chosen)


@contextmanager
def inference(model: PreTrainedModel, device: torch.device, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Evaluation mode, no gradients, and matrix products in `dtype` (autocast over float32 weights) inside the block.

    The model is moved to `device`; its training mode is put back at the end. Refused where `dtype` is float32 but the
    weights are narrower, so that the result would not be float32.
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
        with torch.inference_mode(), nullcontext() if dtype == weights else torch.autocast(device.type, dtype=dtype):
            yield
    finally:
        model.train(was_training)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every next token, one block at a time, so that no second copy of all logits is needed.

    Args:
        logits: [batch, seq, vocab], any float dtype
        targets: the tokens themselves, `IGNORE` in place of those that are not predicted. [batch, seq]

    Returns:
        −log p(x_{t+1} | x_{≤t}) for t = 1 … seq − 1, nats, computed in float32; 0 where x_{t+1} is not predicted.
        [batch, seq − 1], float64, on the CPU
    """
    given = zip(logits, targets, strict=True)
    losses = (F.cross_entropy(row[:-1].float(), ids[1:], reduction="none", ignore_index=IGNORE) for row, ids in given)
    return torch.stack([each.cpu().double() for each in losses])


class ConceptCounts:
    """Sums over labelled positions, from which recall is divided, concept by concept."""

    def __init__(self, num_concepts: int) -> None:
        self.loss = 0.0  # Eq. 2, nats
        self.positions = 0  # that have a label
        # Of each concept its labels, those found among the first 32 predicted (or as many as the model mixes in, if
        # fewer) and among the first k_attr, and the positions at which it was mixed in, labelled or not. [n_concepts]
        self.labels, self.found, self.found_at_labels, self.predicted = np.zeros((4, num_concepts), dtype=np.int64)

    def add(self, predicted: Tensor, labels: Tensor | None, loss: float) -> None:
        """Count a batch: predicted concepts [batch, seq, k], best first, and labels [batch, seq, k_attr]."""

        def per_concept(ids: Tensor) -> NDArray[np.int64]:
            return np.bincount(ids.cpu().numpy(), minlength=len(self.labels))

        self.predicted += per_concept(predicted.flatten())
        if labels is None:
            return
        self.loss += loss
        self.positions += int(labels.ne(IGNORE).any(-1).sum())
        self.labels += per_concept(labels[labels != IGNORE])
        self.found += per_concept(labels[recalled_labels(predicted[..., :_RECALL_AT], labels)])
        self.found_at_labels += per_concept(labels[recalled_labels(predicted[..., : labels.shape[-1]], labels)])


def measure(
    model: PreTrainedModel,  # a CoCoMix model or any causal LM; moved to `device`, otherwise left as it is
    blocks: MapDataset,  # `{"input_ids": int64 [block_size]}`; `DocumentBlocks` for a model trained on those
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,  # or a narrower type used through autocast
    labels: MapDataset | None = None,  # of the same blocks in order, `{"concept_labels": int64 [block_size, k_attr]}`
) -> tuple[NDArray[np.float32], ConceptCounts | None]:
    """Run a model once over token blocks. Results do not depend on `batch_size`, except for rounding.

    Refused where data, labels and model do not belong together, or a loss is not a finite number.

    Returns:
        Next-token losses, nats, NaN where a token is not predicted [blocks, block_size]; counts of the concepts, `None`
        of a model that predicts none.
    """
    require_measurable(model, blocks, labels, batch_size)
    count = len(blocks)
    losses = np.full((count, len(blocks[0]["input_ids"])), np.nan, dtype=np.float32)
    concepts = ConceptCounts(model.config.num_concepts) if predicts_concepts(model) else None
    with inference(model, device, dtype), progress("evaluating", losses.size, "tokens") as advance:
        for batch in batches(model, blocks, labels, count=count, batch_size=batch_size, device=device):
            given = batch.inputs
            if batch.concept_labels is not None:  # the sum over labelled positions, not their mean
                given |= {"concept_labels": batch.concept_labels, "num_concept_items_in_batch": 1}
            output = model(**given)
            found = token_losses(output.logits, batch.targets).float()
            if not bool(found.isfinite().all()):
                raise CoCoMixError(
                    "the model's loss on this data is not a finite number; its weights are damaged, train it again."
                )
            found[batch.targets[:, 1:].cpu() == IGNORE] = torch.nan
            losses[batch.blocks, 1:] = found.numpy()
            if concepts is not None:
                loss = 0.0 if batch.concept_labels is None else float(output.concept_loss)
                concepts.add(output.concept_ids, batch.concept_labels, loss)
            advance(batch.input_ids.numel())
    if concepts is not None and labels is not None and concepts.positions == 0:
        raise CoCoMixError("none of the blocks evaluated has a labelled position; raise limit_blocks or label again.")
    return losses, concepts
