"""How often each concept labels each token of a training split: a table from tokens to concepts, and frequencies."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cocomix.data import TRAIN, MixedData, Tokens
from cocomix.evaluation.reliance import first_distinct
from cocomix.labelling import MOST_POSITIONS, Concatenated, Labels, places_in_lists
from cocomix.runtime.ignore import IGNORE

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class LabelCounts:
    """Pairs of a token and a concept that labels it.

    Attributes:
        tokens: of each pair, rising. [pairs]
        concepts: of each pair. [pairs]
        counts: labels of each pair. [pairs]
    """

    tokens: Integers
    concepts: Integers
    counts: Integers
    num_concepts: int

    @property
    def of_concepts(self) -> NDArray[np.int64]:
        """Labels of each concept. [n_concepts], int64"""
        return np.bincount(self.concepts, self.counts, self.num_concepts).astype(np.int64)

    def table(self, vocab_size: int, k: int) -> Integers:
        """The k concepts that most often label each token, the most frequent first. [vocab_size, k], int64

        A token with fewer concepts gets those that are most frequent over all tokens in their place.
        """
        places = places_in_lists(self.tokens, self.counts)
        kept = places < k
        table = np.full((vocab_size, k), IGNORE, dtype=np.int64)
        table[self.tokens[kept], places[kept]] = self.concepts[kept]
        frequent = np.argsort(-self.of_concepts, kind="stable")[:k]
        candidates = np.concatenate((table, np.broadcast_to(frequent, (vocab_size, len(frequent)))), axis=1)
        filled = [first_distinct(some, k) for some in torch.split(torch.from_numpy(candidates), 4096)]
        return torch.cat(filled).numpy()


def count_labels(data: Tokens, labels: Concatenated[Labels]) -> LabelCounts:
    """Count the labels of about two million positions, in blocks spread over the training split.

    Args:
        labels: of every corpus of it.
    """
    n_concepts, keys = labels.first.num_concepts, []
    parts = data.parts if isinstance(data, MixedData) else (data,)
    step = max(data.manifest.splits[TRAIN].blocks * data.manifest.block_size // MOST_POSITIONS, 1)
    for part, store in zip(parts, labels.parts, strict=True):
        blocks, stored = part.split(TRAIN), store.split(TRAIN)
        for index in range(0, len(stored), step):
            ids = stored[index]["concept_labels"].numpy()
            pairs = blocks.rows(index, index + 1)[0].astype(np.int64)[:, None] * n_concepts + ids
            keys.append(pairs[ids != IGNORE])
    found, counts = np.unique(np.concatenate([*keys, np.empty(0, np.int64)]), return_counts=True)
    tokens, concepts = np.divmod(found, n_concepts)
    return LabelCounts(tokens, concepts, counts, n_concepts)
