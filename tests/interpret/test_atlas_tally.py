from collections import Counter, defaultdict

import numpy as np
import pytest

from cocomix.interpret.atlas_tally import StrongestPlaces, Tally, histogram_edges

CONCEPTS, SEQ, K, K_ATTR, BINS, KEPT = 20, 7, 4, 3, 6, 3


def batches(seed=0, sizes=(2, 3, 1)):
    """Predictions and labels of consecutive blocks; values are coarse, so that ties happen."""
    draws = np.random.default_rng(seed)
    for blocks in sizes:
        ids = draws.permuted(np.broadcast_to(np.arange(CONCEPTS), (blocks, SEQ, CONCEPTS)), axis=-1)
        values = draws.integers(-4, 9, (blocks, SEQ, K)).astype(np.float32) / 2
        labels = draws.permuted(np.broadcast_to(np.arange(CONCEPTS), (blocks, SEQ, CONCEPTS)), axis=-1)[..., :K_ATTR]
        labels = np.where(draws.random(labels.shape) < 0.3, -100, labels)
        yield ids[..., :K].copy(), values, labels, draws.integers(1, 5, labels.shape).astype(np.float32)


def filled(**changes) -> Tally:
    tally = Tally.empty(CONCEPTS, bins=BINS, contexts=KEPT)
    for ids, values, labels, scores in batches(**changes):
        tally.add_predictions(ids, values)
        tally.add_labels(labels, scores, ids)
        tally.finish_blocks(len(ids))
    return tally


def strongest(found):
    """The naive twin of `StrongestPlaces`: sort everything, one place per block."""
    best = {}
    for concept, places in found.items():
        used, kept = set(), []
        for strength, place in sorted(places, key=lambda entry: (-entry[0], entry[1])):
            if place // SEQ not in used:
                used.add(place // SEQ)
                kept.append((strength, place))
        best[concept] = kept[:KEPT]
    return best


def test_counts_equal_a_naive_count():
    predicted, positive, labelled, hits = Counter(), Counter(), Counter(), Counter()
    logits, label_places, logit_places = defaultdict(list), defaultdict(list), defaultdict(list)
    first, some_label = 0, 0
    for ids, values, labels, scores in batches():
        for block in range(len(ids)):
            for position in range(SEQ):
                place = (first + block) * SEQ + position
                here = dict(zip(ids[block, position].tolist(), values[block, position].tolist(), strict=True))
                predicted.update(here.keys())
                positive.update(concept for concept, value in here.items() if value > 0)
                for concept, value in here.items():
                    logits[concept].append(value)
                    logit_places[concept].append((value, place))
                pairs = zip(labels[block, position], scores[block, position], strict=True)
                named = [(c, s) for c, s in pairs if c >= 0]
                some_label += bool(named)
                for concept, score in named:
                    labelled[int(concept)] += 1
                    hits[int(concept)] += int(concept) in here
                    label_places[int(concept)].append((float(score), place))
        first += len(ids)
    tally = filled()
    edges = histogram_edges(next(iter(batches()))[1], BINS)
    assert tally.edges.tolist() == edges.tolist()
    assert (int(tally.blocks[0]), int(tally.labelled_positions[0])) == (6, some_label)
    for concept in range(CONCEPTS):
        assert tally.predicted[concept] == predicted[concept]
        assert tally.positive[concept] == positive[concept]
        assert tally.labels[concept] == labelled[concept]
        assert tally.hits[concept] == hits[concept]
        assert tally.logit_sum[concept] == pytest.approx(sum(logits[concept]))
        assert tally.logit_max[concept] == max(logits[concept])
        clipped = np.clip(logits[concept], edges[0], edges[-1])
        assert tally.histogram[concept].tolist() == np.histogram(clipped, edges)[0].tolist()
        assert tally.best_predicted.of(concept) == strongest(logit_places)[concept]
        assert tally.best_labels.of(concept) == strongest(label_places).get(concept, [])


def test_how_blocks_are_batched_changes_nothing_but_the_edges():
    whole = Tally.empty(CONCEPTS, bins=BINS, contexts=KEPT)
    parts = [np.concatenate(arrays) for arrays in zip(*batches(), strict=True)]
    whole.add_predictions(*parts[:2])
    whole.add_labels(parts[2], parts[3], parts[0])
    split = filled()
    assert (whole.best_predicted.places == split.best_predicted.places).all()
    assert (whole.best_labels.strengths == split.best_labels.strengths).all()
    assert (whole.logit_sum == split.logit_sum).all()


def test_a_tally_is_read_back_as_it_was_written(tmp_path):
    tally = filled()
    tally.save(tmp_path / "tally.safetensors")
    again = Tally.load(tmp_path / "tally.safetensors")
    for name in ("predicted", "hits", "logit_sum", "logit_max", "histogram", "edges", "blocks"):
        assert getattr(again, name).tolist() == getattr(tally, name).tolist()
    assert again.best_labels.of(3) == tally.best_labels.of(3)
    assert [path.name for path in tmp_path.iterdir()] == ["tally.safetensors"]


def test_frequent_concepts_and_high_logits():
    tally = Tally.empty(4, bins=4, contexts=1)
    ids = np.array([[[0, 1]] * 20 + [[1, 2]] * 20])  # concept 1 at every position, 3 at none
    values = np.stack((np.linspace(0, 4, 40), np.full(40, 1.5)), axis=-1)[None].astype(np.float32)
    tally.add_predictions(ids, values)
    assert tally.frequent(10) == [1, 0, 2]
    assert tally.frequent(1) == [1]
    high = tally.high_logits()
    assert tally.edges.tolist() == [0, 1, 2, 3, 4]
    assert high.tolist() == [2, 4, 2, 4]  # of 3, which is nowhere: the value over all


def test_equal_logits_still_have_bins():
    assert histogram_edges(np.full(3, 2.0), 2).tolist() == [2.0, 2.5, 3.0]


def test_memory_is_bounded_by_the_number_of_concepts():
    """C = 131,072: half a kilobyte per concept however much is read, and no text among it."""
    concepts, draws = 131_072, np.random.default_rng(0)
    tally = Tally.empty(concepts, bins=24, contexts=12)

    def size() -> int:
        best = (tally.best_predicted, tally.best_labels)
        arrays = [value for value in vars(tally).values() if isinstance(value, np.ndarray)]
        return sum(a.nbytes for a in arrays) + sum(b.strengths.nbytes + b.places.nbytes for b in best)

    before = size()
    for _ in range(2):
        ids = draws.integers(0, concepts, (8, 64, 32))
        values = draws.normal(size=ids.shape).astype(np.float32)
        tally.add_predictions(ids, values)
        tally.add_labels(ids[..., :4], values[..., :4], ids)
        tally.finish_blocks(8)
    assert size() == before < 600 * concepts
    assert not [value for value in vars(tally).values() if not isinstance(value, np.ndarray | StrongestPlaces)]
