"""N-gram references against two independent implementations."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from cocomix.evaluation import references as module
from cocomix.evaluation.references import ORDERS, ContextTokens, discounts, measure_references

VOCAB = 40


def blocks(count: int, size: int, seed: int) -> np.ndarray:
    """Text in which a token mostly follows from the two before it, cut into blocks."""
    generator = np.random.default_rng(seed)
    tokens = [1, 2]
    zipf = 1 / np.arange(1, VOCAB + 1)
    for draw in generator.choice(VOCAB, size=count * size, p=zipf / zipf.sum()):
        expected = (3 * tokens[-1] + tokens[-2]) % VOCAB
        tokens.append(expected if generator.random() < 0.4 else int(draw))
    return np.array(tokens[: count * size], dtype=np.uint16).reshape(count, size)


def of(rows: np.ndarray) -> ContextTokens:
    return ContextTokens(rows.ravel(), np.broadcast_to(np.arange(rows.shape[1]), rows.shape).ravel())


class Naive:
    """Modified Kneser-Ney by dictionaries, from the formula (Chen & Goodman 1999), n-gram by n-gram."""

    def __init__(self, rows: list[list[int]], order: int) -> None:
        self.counts = []
        for n in range(1, order + 1):
            found: Counter[tuple[int, ...]] = Counter()
            for row in rows:
                found.update(tuple(row[i - n + 1 : i + 1]) for i in range(n - 1, len(row)))
            self.counts.append(found)
        for n in range(order - 1):  # lower orders: distinct tokens before
            self.counts[n] = Counter(gram[1:] for gram in self.counts_of_whole(rows, n + 2))
        self.cuts = [self.discounts(found) for found in self.counts]
        self.followers = [defaultdict(list) for _ in self.counts]
        for n, found in enumerate(self.counts):
            for gram, count in found.items():
                self.followers[n][gram[:-1]].append(count)

    @staticmethod
    def counts_of_whole(rows: list[list[int]], n: int) -> set[tuple[int, ...]]:
        return {tuple(row[i - n + 1 : i + 1]) for row in rows for i in range(n - 1, len(row))}

    @staticmethod
    def discounts(found: Counter) -> list[float]:
        n = [sum(count == k for count in found.values()) for k in range(5)]
        if 0 in n[1:4]:
            return [0, 0.5, 1, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        estimates = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
        return [0, *estimates] if min(estimates) > 0 else [0, 0.5, 1, 1.5]

    def probability(self, gram: tuple[int, ...]) -> float:
        if not gram:
            return 1 / VOCAB
        n = len(gram) - 1
        lower = self.probability(gram[1:])
        counts = self.followers[n].get(gram[:-1])
        if not counts:
            return lower
        cut = lambda count: self.cuts[n][min(count, 3)]  # noqa: E731
        own = self.counts[n].get(gram, 0)
        return (own - cut(own) + lower * sum(map(cut, counts))) / sum(counts)


def test_every_probability_equals_the_formula_worked_by_dictionaries() -> None:
    train, heldout = blocks(60, 25, 0), blocks(12, 25, 1)
    losses, references = measure_references(of(train), of(heldout), VOCAB)
    models = [Naive(train.tolist(), order) for order in range(1, 5)]
    for order, name in enumerate(ORDERS, start=1):
        expected = []
        for row in heldout.tolist():
            for place in range(1, len(row)):
                reached = min(order, place + 1)  # less context at a block's beginning: the model of that order
                expected.append(-math.log(models[reached - 1].probability(tuple(row[place - reached + 1 : place + 1]))))
        np.testing.assert_allclose(losses[name], expected, rtol=1e-9)
        assert getattr(references, name) == pytest.approx(np.mean(expected))
    assert references.training_tokens == train.size
    assert references.peak_memory > 0


def test_within_a_hundredth_nat_of_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    """NLTK's discount is one fixed number, and its lowest order is not interpolated; so is ours here."""
    lm = pytest.importorskip("nltk.lm")
    monkeypatch.setattr(module, "discounts", lambda counts: np.array([0.0, 0.1, 0.1, 0.1]))
    train, heldout = blocks(1, 6000, 0), blocks(1, 500, 1)
    losses, _ = measure_references(of(train), of(heldout), VOCAB)
    for order, name in ((2, "bigram"), (3, "trigram"), (4, "fourgram")):
        theirs = lm.KneserNeyInterpolated(order, discount=0.1)
        text = [str(token) for token in train[0]]
        grams = [tuple(text[i : i + n]) for n in range(1, order + 1) for i in range(len(text) - n + 1)]
        theirs.fit([grams], vocabulary_text=[str(token) for token in range(VOCAB)])
        tokens = [str(token) for token in heldout[0]]
        scores = [theirs.score(tokens[i], tokens[i - order + 1 : i]) for i in range(order - 1, len(tokens))]
        ours = losses[name][order - 2 :]
        assert np.mean(ours) == pytest.approx(-np.mean(np.log(scores)), abs=0.01)


def test_probabilities_of_the_vocabulary_add_up_to_one() -> None:
    train = of(blocks(20, 25, 0))
    for context in ([3, 7, 9], [39, 39, 38], [0, 0, 1]):
        rows = np.array([[*context, token] for token in range(VOCAB)])
        losses, _ = measure_references(train, of(rows), VOCAB)
        for name in ORDERS:
            assert np.exp(-losses[name][2::3]).sum() == pytest.approx(1.0)


def test_counting_does_not_cross_the_beginning_of_a_context() -> None:
    joined = np.array([[1, 2, 3, 4]])
    cut = ContextTokens(joined.ravel(), np.array([0, 1, 0, 1]))
    ask = of(np.array([[2, 3]]))
    together, apart = (measure_references(train, ask, 6)[0]["bigram"][0] for train in (of(joined), cut))
    assert together < apart


@pytest.mark.parametrize("vocab_size", [6, 2**20])
def test_no_text_to_count_and_large_vocabularies(vocab_size: int) -> None:
    short = of(np.array([[1], [2]]))
    losses, _ = measure_references(short, of(np.array([[1, 2, vocab_size - 1, 1, 2]])), vocab_size)
    assert all(np.isfinite(each).all() for each in losses.values())


@pytest.mark.parametrize("counts", [[5, 9, 12], [1, 2, 3, 4, 4, 4, 4, 4]])
def test_discounts_that_cannot_be_estimated(counts: list[int]) -> None:
    np.testing.assert_array_equal(discounts(np.array(counts)), [0, 0.5, 1, 1.5])
