"""`evaluate_run`: measure a finished run on a split of its own data, or of other data with the same tokenizer."""

import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from cocomix.data import TRAIN, VALIDATION, MixedData, Tokens
from cocomix.evaluation.inference import ConceptCounts, measure
from cocomix.evaluation.loss_slices import TokenClasses, loss_slices, token_table
from cocomix.evaluation.references import MOST_TOKENS, ORDERS, ContextTokens, References, measure_references
from cocomix.evaluation.reliance import concept_reliance, first_distinct, no_reliance_reason
from cocomix.evaluation.run_evaluation import (
    CompressionNorms,
    ConceptResults,
    FrequencyRecall,
    RunEvaluation,
    evaluations_of,
)
from cocomix.evaluation.run_inputs import RunBlocks, open_run_data, open_run_labels, run_blocks, training_tokens
from cocomix.labelling import MOST_POSITIONS, Concatenated, Labels
from cocomix.model import predicts_concepts
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training import Run
from cocomix.training.recipe import load_recipe

logger = logging.getLogger(__name__)


def evaluate_run(
    run: Run,
    *,
    device: torch.device,
    data: Path | None = None,
    labels: Path | None = None,
    split: str = VALIDATION,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    limit_blocks: int | None = None,
    block_size: int | None = None,
    reliance: bool = True,
    seed: int = 0,
) -> RunEvaluation:
    """Load a run's model, measure it, and write the result into the run's folder (see `RunEvaluation`).

    Refused where data, labels and run do not belong together, or something cannot be read.

    Args:
        data: prepared data with the run's tokenizer; by default the run's own.
        labels: labels of that data; by default the run's own, where they are still there and belong to the data.
        dtype: float32 (default), or a narrower type used through autocast.
        limit_blocks: use only the first blocks; of a mixture, of each corpus its share.
        block_size: tokens of a block; by default as in training.
        reliance: also measure concept reliance, where the model mixes concepts in.
    """
    started = time.perf_counter()
    prepared, model = open_run_data(run, data), run.model()
    store = None
    if predicts_concepts(model):
        store = open_run_labels(run, prepared, model.config.num_concepts, labels, without="concept recall")
    elif labels is not None:
        raise CoCoMixError(f"the run {run.manifest.name} has no concepts to compare with labels; leave --labels out.")
    blocks = run_blocks(run, prepared, store, split=split, block_size=block_size, limit_blocks=limit_blocks)
    how: dict[str, Any] = {"batch_size": batch_size, "device": device, "dtype": dtype}
    token_losses, concepts = measure(model, blocks.rows, **how, labels=blocks.labels)
    asked = blocks.depth > 0
    loss = float(token_losses[asked].astype(np.float64).mean())
    losses, references, counts = _references(run, blocks, split)
    table = token_table(blocks, token_losses, TokenClasses(run.tokenizer()), losses, counts)
    counted = None if store is None or blocks.labels is None else count_labels(prepared, store)
    relied, note = None, None
    if reliance:
        note = no_reliance_reason(model)
        if note is None and len(blocks.rows) < 2:
            note = "a single block was evaluated, so there is no other text to take concepts from."
        if note is None:
            kind = None if store is None else store.first.manifest.labels["kind"]
            often = None if counted is None else counted.table(model.config.vocab_size, model.config.concept_topk)
            relied = concept_reliance(model, blocks, token_losses, **how, label_kind=kind, table=often, seed=seed)
    meta = prepared.manifest.splits[split]
    result = RunEvaluation(
        run=run.manifest.name,
        seed=run.manifest.seed,
        data_fingerprint=prepared.manifest.fingerprint,
        split=split,
        dtype=str(dtype).removeprefix("torch."),
        blocks=len(blocks.rows),
        limited=blocks.limited,
        block_size=blocks.block_size,
        targets=int(asked.sum()),
        seconds=round(time.perf_counter() - started, 3),
        loss=loss,
        perplexity=math.exp(loss),
        bits_per_byte=None if meta.bits_per_byte is None else loss * meta.bits_per_byte,
        references=references,
        slices=loss_slices(table),
        concepts=None if concepts is None else _concept_results(model, concepts, store, counted),
        reliance=relied,
        reliance_note=note,
    )
    result.save(run, table)
    return result


def _concept_results(
    model: PreTrainedModel, counts: ConceptCounts, store: Concatenated[Labels] | None, training: "LabelCounts | None"
) -> ConceptResults:
    labelled, labels, compression = counts.positions > 0, max(int(counts.labels.sum()), 1), None
    if model.config.form.mixes_in:
        norms = model.compression_weight.detach().float().cpu().norm(dim=-1)
        low, median, high = norms.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
        unused = float((norms < 0.01).float().mean())
        compression = CompressionNorms(unused=unused, low=low, median=median, high=high)
    return ConceptResults(
        loss=counts.loss / counts.positions if labelled else None,
        recall_at_32=int(counts.found.sum()) / labels if labelled else None,
        recall_at_labels=int(counts.found_at_labels.sum()) / labels if labelled else None,
        labelled_positions=counts.positions if labelled else None,
        label_content=None if store is None else store.first.manifest.content,
        recall_by_frequency=() if training is None else _recall_by_frequency(counts, training.of_concepts),
        concepts_predicted=int((counts.predicted > 0).sum()),
        num_concepts=len(counts.predicted),
        compression=compression,
    )


def _recall_by_frequency(counts: ConceptCounts, training: NDArray[np.int64]) -> tuple[FrequencyRecall, ...]:
    groups, bands = [], np.searchsorted(10 ** np.arange(19), training, side="right")  # 0, 1-9, 10-99, …
    for band in np.unique(bands).tolist():
        inside = bands == band
        labels, found = int(counts.labels[inside].sum()), int(counts.found[inside].sum())
        span = {"lowest": 10 ** (band - 1) if band else 0, "highest": 10**band - 1}
        recall = found / labels if labels else None
        groups.append(FrequencyRecall(**span, concepts=int(inside.sum()), labels=labels, recall=recall))
    return tuple(groups)


def _references(
    run: Run, blocks: RunBlocks, split: str
) -> tuple[dict[str, NDArray[Any]] | None, References | None, NDArray[np.int64] | None]:
    """Losses of n-gram models on the evaluated tokens, their means, and the training tokens' counts.

    Nothing is counted again where an earlier evaluation of this run has the losses of the same tokens.
    """
    try:
        own = blocks.data if blocks.data.manifest.fingerprint == run.manifest.data.fingerprint else open_run_data(run)
        train = training_tokens(run, own, MOST_TOKENS)
    except CoCoMixError as error:
        logger.warning(f"there are no n-gram references to judge the loss by: {error}")
        return None, None, None
    vocab_size = own.manifest.vocab_size
    counts = np.bincount(train.tokens, minlength=vocab_size)
    asked = blocks.depth > 0
    with suppress(CoCoMixError):  # a damaged one must not keep a run from being evaluated again
        for earlier in evaluations_of(run):
            known = earlier.references
            same = (earlier.data_fingerprint, earlier.split) == (blocks.data.manifest.fingerprint, split)
            if known is not None and same and earlier.block_size == blocks.block_size:
                table = earlier.token_losses()[: int(asked.sum())]
                if known.training_tokens == len(train.tokens) and np.array_equal(table["token"], blocks.ids[asked]):
                    losses = {order: table[order].to_numpy() for order in ORDERS}
                    means = {order: float(values.mean(dtype=np.float64)) for order, values in losses.items()}
                    whole = earlier.targets == int(asked.sum())
                    return losses, known if whole else known.model_copy(update=means), counts
    logger.info(f"counting {len(train.tokens):,} training tokens for the n-gram references")
    heldout = ContextTokens(blocks.ids.ravel(), blocks.depth.ravel())
    losses, references = measure_references(train, heldout, vocab_size)
    return losses, references, counts


def final_references(run: Run) -> References | None:
    """The n-gram references of the validation blocks that the run's own final evaluation read; refused where the run's
    data cannot be read.
    """
    limit = load_recipe(run.path / "recipe.yaml").evaluation_blocks
    blocks = run_blocks(run, open_run_data(run), None, limit_blocks=limit)
    return _references(run, blocks, VALIDATION)[1]


Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class LabelCounts:
    """How often concepts label tokens."""

    pairs: pd.DataFrame  # columns token, concept, count; by token, the most frequent concept first
    of_concepts: NDArray[np.int64]  # labels of each concept. [n_concepts], int64

    def table(self, vocab_size: int, k: int) -> Integers:
        """The k concepts that most often label each token, the most frequent first. [vocab_size, k], int64

        A token with fewer concepts gets those that are most frequent over all tokens in their place.
        """
        first = self.pairs.groupby("token").head(k)
        table = np.full((vocab_size, k), IGNORE, dtype=np.int64)
        table[first["token"], first.groupby("token").cumcount()] = first["concept"]
        frequent = np.argsort(-self.of_concepts, kind="stable")[:k]
        candidates = np.concatenate((table, np.broadcast_to(frequent, (vocab_size, len(frequent)))), axis=1)
        filled = [first_distinct(some, k) for some in torch.split(torch.from_numpy(candidates), 4096)]
        return torch.cat(filled).numpy()


def count_labels(data: Tokens, labels: Concatenated[Labels]) -> LabelCounts:
    """Count the labels of about two million positions, in blocks spread over the training split."""
    n_concepts, keys = labels.first.num_concepts, [np.empty(0, np.int64)]
    parts = data.parts if isinstance(data, MixedData) else (data,)
    step = max(data.manifest.splits[TRAIN].blocks * data.manifest.block_size // MOST_POSITIONS, 1)
    for part, store in zip(parts, labels.parts, strict=True):
        blocks, stored = part.split(TRAIN), store.split(TRAIN)
        for index in range(0, len(stored), step):
            ids = stored[index]["concept_labels"].numpy()
            pairs = blocks.rows(index, index + 1)[0].astype(np.int64)[:, None] * n_concepts + ids
            keys.append(pairs[ids != IGNORE])
    found, counts = np.unique(np.concatenate(keys), return_counts=True)
    counted = pd.DataFrame({"token": found // n_concepts, "concept": found % n_concepts, "count": counts})
    counted = counted.sort_values(["token", "count"], ascending=[True, False], kind="stable")
    return LabelCounts(counted, np.bincount(counted["concept"], counted["count"], n_concepts).astype(np.int64))
