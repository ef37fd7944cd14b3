"""What labels hold: how much of them the current token alone tells, and how they spread over the concepts.

A label that a table from the current token gives is the token's identity under another name, and a student that
predicts it has learned no context. Recall of a student therefore stands between two references that know no context,
fitted on four fifths of the labelled blocks and measured on the rest:

* *static*: the same list of concepts at every position, the most frequent first.
* *token*: for every current token the concepts that were its labels, the most frequent first. A token that the first
  part does not hold gets the static list.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cocomix.runtime.section import Section

MOST_POSITIONS = 2_000_000
"""Positions that are looked at, in blocks spread over the training split: 2 s and 0.4 GB with four labels each."""

WIDE = 32  # concepts of the longer list: as many as the paper's student predicts (section 3)

_MEASURED = 5  # every fifth block is measured on, the others are fitted on

_MOST_BY_TOKEN = 0.8

Ints = NDArray[np.int64]


class LabelContent(Section):
    """What labels hold, measured on a sample of the training split."""

    positions: int = Field(ge=1)
    """Labelled positions in the sample."""
    k: int
    """Labels per position, at most."""
    static_recall_at_labels: float
    """Share of labels among the first k of the static list."""
    static_recall_at_32: float
    """The same of its first 32."""
    token_recall_at_labels: float
    """Share of labels among the first k concepts of the current token's list."""
    token_recall_at_32: float
    """The same of its first 32."""
    entropy: float
    """H(label), of a label drawn at random, nats."""
    entropy_given_token: float
    """H(label | current token), nats, from counts. Too low where tokens are rare: a token with one labelled position
    seems to determine its labels."""
    concepts_used: int
    """Concepts with at least one label in the sample."""
    num_concepts: int
    """Of the dictionary."""
    top_share: float
    """Share of the labels that are of the most frequent concept."""

    def warnings(self, *, of_dictionary: bool = True) -> list[str]:
        """What is wrong with these labels, and what to do about it, a sentence each.

        Of concepts that are not `of_dictionary`, such as words, many may never occur.
        """
        found = []
        if self.token_recall_at_32 > _MOST_BY_TOKEN:
            found.append(
                f"the current token alone gives {self.token_recall_at_32:.0%} of the labels (recall@{WIDE} of a "
                f"table; one list for all tokens gives {self.static_recall_at_32:.0%}), so predicting "
                "them teaches little about context; take labels of kind contextual, or where they are, a later layer "
                "of the teacher or a dictionary of more concepts."
            )
        if of_dictionary and self.concepts_used < self.num_concepts / 2:
            found.append(
                f"only {self.concepts_used:,} of {self.num_concepts:,} concepts label any of the first "
                f"{self.positions:,} training positions; fit a dictionary with fewer concepts (--num-concepts), on "
                "more tokens (--tokens) or on more text."
            )
        return found


def label_content(
    blocks: Iterable[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]], *, num_concepts: int
) -> LabelContent | None:
    """Measure a sample of labelled blocks: tokens [seq], label ids [seq, k] and numbers of labels [seq] of each.

    `None` where there are fewer than five blocks, or none of a part has labels.
    """
    parts: tuple[list[Ints], list[Ints]] = [], []
    positions, k, number = 0, 0, -1
    for number, (tokens, ids, counts) in enumerate(blocks):
        present = np.arange(ids.shape[-1]) < counts[:, None]  # [seq, k]
        pairs = tokens[:, None].astype(np.int64) * num_concepts + ids  # a pair (token, concept) as one number
        parts[number % _MEASURED == _MEASURED - 1].append(pairs[present])
        positions, k = positions + int((counts > 0).sum()), ids.shape[-1]
    fitted, measured = (np.concatenate(part) if part else np.empty(0, np.int64) for part in parts)
    if number + 1 < _MEASURED or not len(fitted) or not len(measured):
        return None
    static = np.argsort(-np.bincount(fitted % num_concepts, minlength=num_concepts), kind="stable")
    static_rank = np.empty(num_concepts, np.int64)
    static_rank[static] = np.arange(num_concepts)
    by_static = static_rank[measured % num_concepts]
    fitted_pairs, fitted_counts = np.unique(fitted, return_counts=True)
    fitted_tokens = fitted_pairs // num_concepts
    order = np.lexsort((-fitted_counts, fitted_tokens))  # by token, then by falling count
    ranks = np.empty(len(order), np.int64)  # of each pair's concept in its token's list
    ranks[order] = np.arange(len(order)) - np.searchsorted(fitted_tokens, fitted_tokens)
    place = np.minimum(np.searchsorted(fitted_pairs, measured), len(fitted_pairs) - 1)
    found = np.where(fitted_pairs[place] == measured, ranks[place], num_concepts)  # beyond a list that lacks the label
    by_token = np.where(np.isin(measured // num_concepts, fitted_tokens), found, by_static)
    everything = np.concatenate([fitted, measured])
    pairs, pair_counts = np.unique(everything, return_counts=True)
    concept_counts = np.bincount(everything % num_concepts, minlength=num_concepts)
    _, token_counts = np.unique(everything // num_concepts, return_counts=True)
    return LabelContent(
        positions=positions,
        k=k,
        static_recall_at_labels=float((by_static < k).mean()),
        static_recall_at_32=float((by_static < WIDE).mean()),
        token_recall_at_labels=float((by_token < k).mean()),
        token_recall_at_32=float((by_token < WIDE).mean()),
        entropy=_entropy(concept_counts),
        entropy_given_token=_entropy(pair_counts) - _entropy(token_counts),  # H(l | x) = H(l, x) − H(x)
        concepts_used=int((concept_counts > 0).sum()),
        num_concepts=num_concepts,
        top_share=float(concept_counts.max() / len(everything)),
    )


def _entropy(counts: NDArray[np.integer[Any]]) -> float:
    """Of the distribution that the counts give, nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
