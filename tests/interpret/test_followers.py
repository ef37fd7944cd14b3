"""Scores of the tokens that follow a concept's labels, against counting by hand."""

import math
from collections import Counter

import pytest

from cocomix.data import Tokens
from cocomix.interpret import followers
from cocomix.interpret.followers import follower_scores
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError


@pytest.fixture(scope="module")
def world(workshop):
    return Tokens.open(workshop.data), Labels.open(workshop.labels)


def counted(data, store, blocks):
    """n of (concept, next token), and how often each token is a next token, one position at a time."""
    pairs, everywhere = Counter(), Counter()
    tokens, labels = data.split("train"), store.split("train")
    for row in range(blocks):
        ids, named = tokens[row]["input_ids"].tolist(), labels[row]["concept_labels"].tolist()
        for position, following in enumerate(ids[1:]):
            everywhere[following] += 1
            pairs.update((concept, following) for concept in named[position] if concept >= 0)
    return pairs, everywhere


def test_scores_are_the_log_ratio_of_counts(world, monkeypatch):
    data, store = world
    monkeypatch.setattr(followers, "_BLOCKS_AT_ONCE", 7)
    monkeypatch.setattr(followers, "_COUNTED_TOKENS", 40 * data.manifest.block_size)
    pairs, everywhere = counted(data, store, 40)
    frequent = Counter({concept: sum(n for (c, _), n in pairs.items() if c == concept) for concept, _ in pairs})
    concepts = [concept for concept, _ in frequent.most_common(3)]
    scores = follower_scores(data, store, concepts)
    assert scores.shape == (3, data.manifest.vocab_size)
    total = everywhere.total()
    for row, concept in enumerate(concepts):
        for token in range(data.manifest.vocab_size):
            expected = frequent[concept] * everywhere[token] / total
            score = math.log((pairs[concept, token] + 1) / (expected + 1))
            assert scores[row, token].item() == pytest.approx(score, abs=1e-5)
    assert scores.max() > 0.5 > -0.5 > scores.min()


def test_a_concept_that_never_labels_prefers_nothing(world, monkeypatch):
    data, store = world
    monkeypatch.setattr(followers, "_COUNTED_TOKENS", data.manifest.block_size)
    pairs, _ = counted(data, store, 1)
    unused = next(concept for concept in range(store.num_concepts) if all(c != concept for c, _ in pairs))
    assert not follower_scores(data, store, [unused]).any()
    with pytest.raises(CoCoMixError, match=f"concept {store.num_concepts} does not exist"):
        follower_scores(data, store, [store.num_concepts])
