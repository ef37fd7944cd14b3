"""What concepts are and do in trained models: compression weights, recall by frequency, and statistics of labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cocomix.data import TRAIN
from cocomix.evaluation.inference import MapDataset, batches, count_blocks, inference
from cocomix.labelling import LabelBlocks, Labels
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE

__all__ = [
    "UNUSED_NORM",
    "CompressionNorms",
    "FrequencyRecall",
    "LabelUse",
    "compression_norms",
    "label_counts",
    "label_overlap",
    "label_use",
    "recall_by_frequency",
]

UNUSED_NORM = 1e-2
"""Compression vectors shorter than this count as unused (paper, Fig. 6c: 5.8% of them)."""


@dataclass(frozen=True)
class CompressionNorms:
    """Lengths of the compression vectors, ‖W_comp[:, c]‖₂ for every concept c.

    Attributes:
        norms: float32 [n_concepts]
        unused: share below `UNUSED_NORM`.
    """

    norms: Tensor
    unused: float


def compression_norms(model: CoCoMixForCausalLM) -> CompressionNorms:
    """Measure a model that mixes concepts in."""
    norms = model.compression_weight.detach().float().cpu().norm(dim=-1)
    return CompressionNorms(norms, float((norms < UNUSED_NORM).float().mean()))


@dataclass(frozen=True)
class FrequencyRecall:
    """Recall of the concepts that are about equally frequent.

    Attributes:
        lowest: fewest training labels of a concept in the group.
        highest: most.
        concepts: concepts of the group.
        labels: their labels in the split that was measured.
        recall: share of these labels among the model's concept_topk predictions; `None` without labels.
    """

    lowest: int
    highest: int
    concepts: int
    labels: int
    recall: float | None


def recall_by_frequency(
    model: CoCoMixForCausalLM,
    blocks: MapDataset,
    labels: MapDataset,
    training_counts: Tensor,
    *,
    batch_size: int,
    device: torch.device,
    limit_blocks: int | None = None,
) -> tuple[FrequencyRecall, ...]:
    """Concept recall in groups of concepts by their number of training labels: 0, 1–9, 10–99, …

    Args:
        model: predicts concepts.
        blocks: token blocks of a split.
        labels: their labels.
        training_counts: labels of each concept in the training split, from `label_counts`. int64 [n_concepts]
        batch_size: blocks per forward pass.
        device: where to compute.
        limit_blocks: use only the first blocks.

    Raises:
        CoCoMixError: data, labels and model do not belong together.
    """
    count = count_blocks(model, blocks, labels, batch_size, limit_blocks)
    n_concepts = model.config.num_concepts
    used, hits = torch.zeros(n_concepts, dtype=torch.int64), torch.zeros(n_concepts, dtype=torch.int64)
    total = count * len(blocks[0]["input_ids"])
    with inference(model, device), progress("concept recall", total, "tokens") as advance:
        for batch in batches(model, blocks, labels, count=count, batch_size=batch_size, device=device):
            assert batch.concept_labels is not None
            predicted = model(input_ids=batch.input_ids, use_cache=False).concept_ids
            wanted = batch.concept_labels
            found = (wanted.unsqueeze(-1) == predicted.unsqueeze(-2)).any(-1) & (wanted != IGNORE)
            used += torch.bincount(wanted[wanted != IGNORE].cpu(), minlength=n_concepts)
            hits += torch.bincount(wanted[found].cpu(), minlength=n_concepts)
            advance(batch.input_ids.numel())
    groups, low, high = [], 0, 0
    while low <= int(training_counts.max()):
        inside = (training_counts >= low) & (training_counts <= high)
        seen = int(used[inside].sum())
        recall = int(hits[inside].sum()) / seen if seen else None
        if bool(inside.any()):
            groups.append(FrequencyRecall(low, high, int(inside.sum()), seen, recall))
        low, high = high + 1, high * 10 + 9
    return tuple(groups)


@dataclass(frozen=True)
class LabelUse:
    """How labels spread over the concepts of their dictionary.

    Attributes:
        num_concepts: of the dictionary.
        labels: counted.
        entropy: of a label drawn at random, nats.
        effective_concepts: exp(entropy): so many equally frequent concepts would have the same entropy.
        never_used: share of the concepts without a label.
    """

    num_concepts: int
    labels: int
    entropy: float
    effective_concepts: float
    never_used: float


def label_counts(blocks: LabelBlocks, num_concepts: int, limit_blocks: int | None = None) -> Tensor:
    """Labels of every concept in the first `limit_blocks` blocks. int64 [n_concepts]"""
    counts = torch.zeros(num_concepts, dtype=torch.int64)
    for index in range(len(blocks) if limit_blocks is None else min(limit_blocks, len(blocks))):
        ids = blocks[index]["concept_labels"]
        counts += torch.bincount(ids[ids != IGNORE], minlength=num_concepts)
    return counts


def label_use(counts: Tensor) -> LabelUse:
    """Statistics of counts from `label_counts`.

    Raises:
        CoCoMixError: there is no label.
    """
    total = int(counts.sum())
    if total == 0:
        raise CoCoMixError("there is no label to count; label the data again.")
    shares = counts[counts > 0].double() / total
    entropy = float(-(shares * shares.log()).sum())
    return LabelUse(len(counts), total, entropy, math.exp(entropy), float((counts == 0).double().mean()))


def label_overlap(one: Labels, other: Labels, limit_blocks: int | None = None) -> float:
    """Share of `one`'s labels that `other` chose at the same position, over positions that both labelled.

    Args:
        one: labels of a data set.
        other: other labels of it, from the same dictionary.
        limit_blocks: use only the first blocks of the training split.

    Raises:
        CoCoMixError: they are of other data or another dictionary, or share no labelled position.
    """
    if not comparable(one, other):
        raise CoCoMixError(
            f"the labels in {one.path} and {other.path} are of different data or dictionaries; compare labels that "
            "share both."
        )
    first, second = one.split(TRAIN), other.split(TRAIN)
    same = total = 0
    for index in range(len(first) if limit_blocks is None else min(limit_blocks, len(first))):
        ids, others = first[index]["concept_labels"], second[index]["concept_labels"]
        counted = (ids != IGNORE) & (others != IGNORE).any(-1, keepdim=True)
        same += int(((ids.unsqueeze(-1) == others.unsqueeze(-2)).any(-1) & counted).sum())
        total += int(counted.sum())
    if total == 0:
        raise CoCoMixError(f"no position has labels both in {one.path} and in {other.path}.")
    return same / total


def comparable(one: Labels, other: Labels) -> bool:
    """Whether two sets of labels are of the same data and dictionary."""
    a, b = one.manifest.made_from, other.manifest.made_from
    return all(a.get(role) == b.get(role) for role in ("tokens", "dictionary"))


def distinct_stores(stores: Sequence[Labels]) -> list[Labels]:
    """Each set of labels once, in the order given."""
    return list({store.manifest.fingerprint: store for store in stores}.values())
