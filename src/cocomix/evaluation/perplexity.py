"""Validation loss, perplexity, bits per byte and concept recall: one code path for plain decoders and CoCoMix."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.evaluation.document_losses import DocumentTally
from cocomix.evaluation.inference import MapDataset, batches, count_blocks, inference, token_losses
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives import concept_recall_counts

__all__ = ["Evaluation", "bits_per_byte", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a split.

    Attributes:
        loss: mean cross-entropy of every next token within a block, nats per token.
        perplexity: exp(loss).
        bits_per_byte: see `bits_per_byte`; `None` where the bytes per token are not known.
        blocks: blocks used.
        targets: tokens predicted: (block_size − 1) per block, fewer where documents are kept apart.
        dtype: precision of the matrix products, e.g. `"float32"`.
        seconds: wall clock.
        concept_loss: Eq. 2 averaged over labelled positions, nats; `None` without labels, as all that follows.
        concept_recall: share of the labels that are among the model's `concept_topk` predictions.
        concept_recall_at_labels: the same among its first k_attr predictions, as many as a position can have labels.
        labelled_positions: positions with at least one label.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    blocks: int
    targets: int
    dtype: str
    seconds: float
    concept_loss: float | None = None
    concept_recall: float | None = None
    concept_recall_at_labels: float | None = None
    labelled_positions: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The values that were measured, as JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def evaluate(
    model: PreTrainedModel,
    blocks: MapDataset,
    *,
    batch_size: int,
    device: torch.device,
    bytes_per_token: float | None,
    dtype: torch.dtype = torch.float32,
    labels: MapDataset | None = None,
    limit_blocks: int | None = None,
    documents: DocumentTally | None = None,
) -> Evaluation:
    """Measure a model on token blocks.

    The loss is the sum of the per-token losses divided by their number, accumulated in float64; the first token of a
    block has no context and is no target, nor are tokens that the blocks' own `labels` leave out.
    Results do not depend on `batch_size`, except for rounding.

    Args:
        model: a CoCoMix model or any causal LM of transformers; moved to `device`, otherwise left as it is.
        blocks: token blocks, `{"input_ids": int64 [block_size]}`; `DocumentBlocks` for a model trained on those.
        batch_size: blocks per forward pass.
        device: where to compute.
        bytes_per_token: UTF-8 bytes of the split's text over its tokens, for bits per byte.
        dtype: float32 (default), or a narrower type used through autocast.
        labels: concept labels of the same blocks in the same order, `{"concept_labels": int64 [block_size, k_attr]}`.
        limit_blocks: use only the first blocks.
        documents: receives the losses, to be summed by document.

    Raises:
        CoCoMixError: data, labels and model do not belong together, or the loss is not a finite number.
    """
    count = count_blocks(model, blocks, labels, batch_size, limit_blocks)
    block_size = len(blocks[0]["input_ids"])
    loss_sum, targets, tally = 0.0, 0, _ConceptTally()
    started = time.perf_counter()
    with (
        inference(model, device, dtype),
        progress("evaluating", count * block_size, "tokens") as advance,
    ):
        for batch in batches(model, blocks, labels, count=count, batch_size=batch_size, device=device):
            input_ids, concept_labels = batch.input_ids, batch.concept_labels
            if concept_labels is None:
                output = model(input_ids=input_ids, position_ids=batch.position_ids, use_cache=False)
            else:
                output = model(
                    input_ids=input_ids,
                    position_ids=batch.position_ids,
                    use_cache=False,
                    concept_labels=concept_labels,
                    num_concept_items_in_batch=1,  # the sum over labelled positions, not their mean
                )
                tally.add(float(output.concept_loss), output.concept_ids, concept_labels)
            losses = token_losses(output.logits, batch.targets)
            counted = batch.targets[:, 1:] != IGNORE
            targets += int(counted.sum())
            if documents is not None:
                documents.add(input_ids, losses, counted)
            loss_sum += float(losses.sum())
            if not math.isfinite(loss_sum):
                raise CoCoMixError(
                    "the model's loss on this data is not a finite number; its weights are damaged, train it again."
                )
            advance(input_ids.numel())
    loss = loss_sum / max(targets, 1)
    return Evaluation(
        loss=loss,
        perplexity=math.exp(loss),
        bits_per_byte=None if bytes_per_token is None else bits_per_byte(loss, bytes_per_token),
        blocks=count,
        targets=targets,
        dtype=str(dtype).removeprefix("torch."),
        seconds=time.perf_counter() - started,
        **(tally.results() if labels is not None else {}),
    )


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Loss in nats per token as bits per byte of text: loss / (bytes_per_token · ln 2).

    Comparable across tokenizers, which nats per token are not. Two approximations: the mean loss over the targets
    stands for the loss of all tokens (the first token of each block is never a target), and the split's mean bytes per
    token, end-of-document tokens counted as tokens without bytes, stands for that of the blocks evaluated.

    Raises:
        CoCoMixError: `bytes_per_token` is not positive.
    """
    if not 0.0 < bytes_per_token < math.inf:
        raise CoCoMixError(f"bytes_per_token={bytes_per_token} must be a positive number; prepare the data again.")
    return loss / (bytes_per_token * math.log(2.0))


class _ConceptTally:
    """Sums over batches of what the concept metrics divide."""

    def __init__(self) -> None:
        self.loss_sum = 0.0
        self.positions = self.labels = self.hits = self.hits_at_labels = 0

    def add(self, loss_sum: float, predicted: Tensor, labels: Tensor) -> None:
        hits, used = concept_recall_counts(predicted, labels)
        hits_at_labels, _ = concept_recall_counts(predicted[..., : labels.shape[-1]], labels)
        self.loss_sum += loss_sum
        self.positions += int(labels.ne(IGNORE).any(-1).sum())
        self.labels += int(used)
        self.hits += int(hits)
        self.hits_at_labels += int(hits_at_labels)

    def results(self) -> dict[str, Any]:
        if self.positions == 0:
            raise CoCoMixError(
                "none of the blocks evaluated has a labelled position; raise limit_blocks or label again."
            )
        return {
            "concept_loss": self.loss_sum / self.positions,
            "concept_recall": self.hits / self.labels,
            "concept_recall_at_labels": self.hits_at_labels / self.labels,
            "labelled_positions": self.positions,
        }
