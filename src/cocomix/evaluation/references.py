"""N-gram references: what a table of word sequences makes of the same tokens, so that a loss can be judged.

Interpolated modified Kneser-Ney (Chen & Goodman 1999, section 4.4; what KenLM's `lmplz` estimates), orders 1 to 4. With
c the count of an n-gram h w and D(c) one of the three discounts of its order, taken from the counts of counts,

    p_n(w | h) = (c(h w) - D(c(h w)) + p_{n-1}(w | h') · Σ_v D(c(h v))) / Σ_v c(h v)

where h' is h without its oldest token. The highest order counts occurrences, the lower ones the distinct tokens that
were seen before an n-gram; order 1 is interpolated with the uniform distribution over the vocabulary, so that every
token has a probability.

Contexts are those of the model: counting does not cross the edge of a block, nor of a document where documents are
masked. A held-out token with less context than an order asks for is given the highest order that its context allows,
*with occurrences as counts*: a block's edge is an arbitrary cut in a text, unlike the beginning of a sentence.

Cost, measured: 4 seconds per million training tokens on a busy core of a server and `BYTES_PER_TOKEN` of memory at the
most, both in proportion to the training tokens counted, of which there are at most `MOST_TOKENS`.
"""

import time
import tracemalloc
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cocomix.runtime.section import Record

ORDERS = ("unigram", "bigram", "trigram", "fourgram")

MOST_TOKENS = 20_000_000
"""Training tokens counted at most (our choice: 2.6 GB of memory and about a minute)."""

BYTES_PER_TOKEN = 130
"""Peak memory per counted token, measured (122 at 2M tokens and a vocabulary of 8,192)."""

Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]


class References(Record):
    """Mean loss of each n-gram model on the tokens that a model was evaluated on, nats per token.

    Attributes:
        training_tokens: tokens counted, all of which the model was trained on.
        seconds: for counting and looking up.
        peak_memory: bytes in use at most.
    """

    unigram: float
    bigram: float
    trigram: float
    fourgram: float
    training_tokens: int
    seconds: float
    peak_memory: int


class ContextTokens(NamedTuple):
    """Tokens in a row, and how many of those before each belong to its context."""

    tokens: Integers  # [n]
    depth: Integers  # 0 at the beginning of a block (of a document where documents are masked), then 1, 2, … [n]


def measure_references(
    train: ContextTokens, heldout: ContextTokens, vocab_size: int
) -> tuple[dict[str, Floats], References]:
    """By the name of the order the loss in nats of each held-out token of depth > 0; and means and cost."""
    started, tracing = time.perf_counter(), tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()  # NumPy reports its own allocations
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    try:
        losses = dict(zip(ORDERS, _losses(train, heldout, vocab_size), strict=True))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        if not tracing:
            tracemalloc.stop()
    found: dict[str, Any] = {order: float(values.mean()) for order, values in losses.items()}
    found |= {"seconds": round(time.perf_counter() - started, 3), "peak_memory": peak - before}
    return losses, References(**found, training_tokens=len(train.tokens))


def _losses(train: ContextTokens, heldout: ContextTokens, vocab_size: int) -> list[Floats]:
    asked = heldout.depth > 0
    grams = np.arange(vocab_size)  # the n-grams of an order, as sorted numbers
    counts = np.bincount(train.tokens, minlength=vocab_size)
    context = np.zeros(vocab_size, dtype=np.int64)  # of each n-gram, the number of the (n-1)-gram it begins with
    ids, queries = train.tokens, heldout.tokens.astype(np.int64)  # the n-gram that ends at each position
    given = np.zeros_like(queries)  # the context of each held-out token; -1: not seen in training
    best = np.full(len(queries), 1.0 / vocab_size)  # the highest order that the context allows
    lower = best
    found = []
    for order in range(1, len(ORDERS) + 1):
        reached = heldout.depth >= order - 1
        probabilities = _interpolated(counts, context, queries, given, lower)
        best = np.where(reached, probabilities, best)
        found.append(-np.log(best[asked]))
        if order == len(ORDERS):
            break
        here = np.flatnonzero(train.depth >= order)
        keys = ids[here - 1].astype(np.uint64) * np.uint64(vocab_size) + train.tokens[here].astype(np.uint64)
        longer, first, inverse, occurrences = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        del keys
        before = np.bincount(ids[here[first]], minlength=len(grams))  # distinct tokens seen before each n-gram
        lower = _interpolated(before, context, queries, given, lower)
        grams, counts, context = longer, occurrences, (longer // np.uint64(vocab_size)).astype(np.int64)
        ids = np.zeros(len(train.tokens), dtype=np.int32 if len(longer) < 2**31 else np.int64)
        ids[here] = inverse
        given = np.concatenate(([-1], queries[:-1]))
        given[heldout.depth < order] = -1
        wanted = given.clip(0).astype(np.uint64) * np.uint64(vocab_size) + heldout.tokens.astype(np.uint64)
        place = np.searchsorted(grams, wanted).clip(max=max(len(grams) - 1, 0))
        known = given >= 0 if len(grams) else np.zeros(len(given), dtype=bool)
        known[known] = grams[place[known]] == wanted[known]
        queries = np.where(known, place, -1)
    return found


def _interpolated(
    counts: Integers,  # of each n-gram; 0 = as if it were not there. [n-grams]
    context: Integers,  # number of the context of each. [n-grams]
    queries: Integers,  # n-gram whose probability is asked for; -1 = not seen. [queries]
    given: Integers,  # its context; -1 = not seen. [queries]
    lower: Floats,  # its probability by the order below. [queries]
) -> Floats:
    """Probabilities of one order."""
    contexts = int(max(context.max(initial=0), given.max(initial=0))) + 1
    cut = discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(context, counts, contexts)
    freed = np.bincount(context, cut, contexts)
    seen = (given >= 0) & (total[given] > 0)
    kept = np.where(queries >= 0, (counts - cut)[queries], 0.0) if len(counts) else np.zeros(len(queries))
    return np.where(seen, (kept + freed[given] * lower) / np.where(seen, total[given], 1.0), lower)


def discounts(counts: Integers) -> Floats:
    """What is taken off an n-gram seen 0, 1, 2 and 3 or more times (Chen & Goodman, equation 26).

    Where the estimate does not exist or is no discount (a tiny corpus, or order 1, whose n-grams are all frequent),
    0.5, 1 and 1.5 take its place, as in KenLM. A discount of 0 would leave an unseen token without a probability.
    """
    one, two, three, four = (float((counts == count).sum()) for count in range(1, 5))
    fallback = np.array([0.0, 0.5, 1.0, 1.5])
    if min(one, two, three) == 0:
        return fallback
    y = one / (one + 2 * two)
    estimates = np.array([0.0, 1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three])
    return estimates if (estimates[1:] > 0).all() else fallback
