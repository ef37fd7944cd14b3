"""What an atlas counts while it reads, in memory bounded by the number of concepts.

Counters and histograms are arrays of C rows, and so are the strongest places: per concept the best few positions, kept
as (strength, place), without text. A place is a position counted over all blocks read: block · block_size + position.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from cocomix.runtime.ignore import IGNORE

__all__ = ["StrongestPlaces", "Tally", "histogram_edges"]

Array = NDArray[Any]


class StrongestPlaces:
    """The places where each concept is strongest, at most one per block, so that one text cannot fill the list.

    Attributes:
        strengths: float32 [n_concepts, places], falling along a row; −inf where there is none.
        places: int64 [n_concepts, places]; −1 where there is none.
    """

    def __init__(self, strengths: Array, places: Array) -> None:
        self.strengths, self.places = strengths, places

    @classmethod
    def empty(cls, num_concepts: int, size: int) -> "StrongestPlaces":
        """No place yet, and room for `size` per concept."""
        shape = (num_concepts, size)
        return cls(np.full(shape, -np.inf, dtype=np.float32), np.full(shape, -1, dtype=np.int64))

    def add(self, concepts: Array, strengths: Array, places: Array, block_size: int) -> None:
        """Keep what is stronger than what is there; of equal strengths the earlier place.

        Args:
            concepts: int64 [n].
            strengths: float32 [n].
            places: int64 [n], all of them in blocks that were not added before.
            block_size: tokens per block.
        """
        strong = strengths > self.strengths[concepts, -1]
        concepts, strengths, places = concepts[strong], strengths[strong], places[strong]
        order = np.lexsort((places, -strengths, places // block_size, concepts))
        first = _starts(concepts[order], places[order] // block_size)  # the strongest of each concept and block
        concepts, strengths, places = (values[order][first] for values in (concepts, strengths, places))

        touched = np.unique(concepts)
        size = self.strengths.shape[1]
        kept = self.places[touched].reshape(-1) >= 0
        concepts = np.concatenate((np.repeat(touched, size)[kept], concepts))
        strengths = np.concatenate((self.strengths[touched].reshape(-1)[kept], strengths))
        places = np.concatenate((self.places[touched].reshape(-1)[kept], places))
        order = np.lexsort((places, -strengths, concepts))
        concepts, strengths, places = concepts[order], strengths[order], places[order]
        ranks = np.arange(len(concepts)) - np.searchsorted(concepts, concepts)
        best = ranks < size
        self.strengths[concepts[best], ranks[best]] = strengths[best]
        self.places[concepts[best], ranks[best]] = places[best]

    def of(self, concept: int) -> list[tuple[float, int]]:
        """(strength, place) of one concept, strongest first."""
        count = int((self.places[concept] >= 0).sum())
        return list(zip(self.strengths[concept, :count].tolist(), self.places[concept, :count].tolist(), strict=True))


def _starts(*sorted_keys: Array) -> Array:
    """True where a row of the sorted keys differs from the row before."""
    changed = np.ones(len(sorted_keys[0]), dtype=bool)
    if len(changed) > 1:
        changed[1:] = np.any([key[1:] != key[:-1] for key in sorted_keys], axis=0)
    return changed


def histogram_edges(values: Array, bins: int) -> Array:
    """Equal bins over the range of a sample of logits. float64 [bins + 1]"""
    low, high = float(values.min()), float(values.max())
    return np.linspace(low, high if high > low else low + 1.0, bins + 1)


@dataclass
class Tally:
    """Counts of a pass over the data; rows are concepts.

    Attributes:
        predicted: positions that predict the concept. int64 [n_concepts]
        positive: those with a logit above 0. int64 [n_concepts]
        labels: positions that have it as a label. int64 [n_concepts]
        hits: positions where both hold. int64 [n_concepts]
        logit_sum: of the positions that predict it. float64 [n_concepts]
        logit_max: likewise; −inf where there are none. float32 [n_concepts]
        histogram: of these logits. int64 [n_concepts, bins]
        edges: of the histogram, from the first batch's logits. float64 [bins + 1]
        labelled_positions: positions with a label at all. int64 [1]
        blocks: blocks read. int64 [1]
        best_predicted: the places with the largest logits.
        best_labels: the places with the largest label scores.
    """

    predicted: Array
    positive: Array
    labels: Array
    hits: Array
    logit_sum: Array
    logit_max: Array
    histogram: Array
    edges: Array
    labelled_positions: Array
    blocks: Array
    best_predicted: StrongestPlaces
    best_labels: StrongestPlaces

    @classmethod
    def empty(cls, num_concepts: int, *, bins: int, contexts: int) -> "Tally":
        """Nothing read yet."""
        return cls(
            predicted=np.zeros(num_concepts, dtype=np.int64),
            positive=np.zeros(num_concepts, dtype=np.int64),
            labels=np.zeros(num_concepts, dtype=np.int64),
            hits=np.zeros(num_concepts, dtype=np.int64),
            logit_sum=np.zeros(num_concepts),
            logit_max=np.full(num_concepts, -np.inf, dtype=np.float32),
            histogram=np.zeros((num_concepts, bins), dtype=np.int64),
            edges=np.zeros(bins + 1),
            labelled_positions=np.zeros(1, dtype=np.int64),
            blocks=np.zeros(1, dtype=np.int64),
            best_predicted=StrongestPlaces.empty(num_concepts, contexts),
            best_labels=StrongestPlaces.empty(num_concepts, contexts),
        )

    def add_predictions(self, ids: Array, values: Array) -> None:
        """Count the predictions of the next blocks.

        Args:
            ids: predicted concepts. int64 [blocks, seq, k]
            values: their logits. float32 [blocks, seq, k]
        """
        if self.blocks[0] == 0:
            self.edges[:] = histogram_edges(values, self.histogram.shape[1])
        seq, k = ids.shape[1:]
        places = np.repeat(self._places(ids), k)
        ids, values = ids.reshape(-1), values.reshape(-1)
        count = len(self.predicted)
        self.predicted += np.bincount(ids, minlength=count)
        self.positive += np.bincount(ids[values > 0], minlength=count)
        self.logit_sum += np.bincount(ids, weights=values.astype(np.float64), minlength=count)
        np.maximum.at(self.logit_max, ids, values)
        bins = np.searchsorted(self.edges[1:-1], values, side="right")
        np.add.at(self.histogram, (ids, bins), 1)
        self.best_predicted.add(ids, values, places, seq)

    def add_labels(self, labels: Array, scores: Array, ids: Array) -> None:
        """Count the labels of the next blocks.

        Args:
            labels: −100 = no label. int64 [blocks, seq, k_attr]
            scores: of the labels. float32 [blocks, seq, k_attr]
            ids: predicted concepts. int64 [blocks, seq, k]
        """
        used = labels != IGNORE
        hit = used & (labels[..., None] == ids[..., None, :]).any(-1)
        count = len(self.labels)
        self.labels += np.bincount(labels[used], minlength=count)
        self.hits += np.bincount(labels[hit], minlength=count)
        self.labelled_positions += used.any(-1).sum()
        places = np.broadcast_to(self._places(labels).reshape(*labels.shape[:2], 1), labels.shape)
        self.best_labels.add(labels[used], scores[used], places[used], labels.shape[1])

    def finish_blocks(self, blocks: int) -> None:
        """Say that so many blocks have been counted whole."""
        self.blocks += blocks

    def _places(self, values: Array) -> Array:
        """Places of the positions of the next blocks. int64 [blocks · seq]"""
        blocks, seq = values.shape[:2]
        places: Array = int(self.blocks[0]) * seq + np.arange(blocks * seq)
        return places

    def save(self, path: Path) -> None:
        """Write everything aside and rename it."""
        arrays: dict[str, Array] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, StrongestPlaces):
                arrays |= {f"{field.name}.strengths": value.strengths, f"{field.name}.places": value.places}
            else:
                arrays[field.name] = value
        aside = path.with_name(f".{path.name}.tmp")
        save_file(arrays, aside)
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Tally":
        """Read what `save` wrote."""
        arrays = load_file(path)

        def best(name: str) -> StrongestPlaces:
            return StrongestPlaces(arrays.pop(f"{name}.strengths"), arrays.pop(f"{name}.places"))

        return cls(best_predicted=best("best_predicted"), best_labels=best("best_labels"), **arrays)

    def frequent(self, limit: int) -> list[int]:
        """The concepts predicted most often, most often first; none that is never predicted."""
        order = np.argsort(-self.predicted, kind="stable")[:limit]
        concepts: list[int] = order[self.predicted[order] > 0].tolist()
        return concepts

    def high_logits(self, share: float = 0.95) -> Array:
        """The logit that a share of a concept's predictions stays below, to the precision of the bins.

        A concept that is never predicted gets the value over all concepts. float64 [n_concepts]
        """
        counts = np.vstack((self.histogram, self.histogram.sum(0, keepdims=True)))
        reached = counts.cumsum(1) >= share * counts.sum(1, keepdims=True)
        upper = self.edges[1:][reached.argmax(1)]
        high: Array = np.where(self.predicted > 0, upper[:-1], upper[-1])
        return high
