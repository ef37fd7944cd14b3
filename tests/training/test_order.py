"""The order of blocks: permutations, shares of a mixture, and what each process gets."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.data.permutation import permuted
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.order import PERIOD, MixtureOrder, ShuffledOrder, StepBatches, WindowedOrder

SEEDS = st.integers(0, 2**40)


@settings(deadline=None)
@given(size=st.integers(1, 3000), seed=SEEDS, number=st.integers(0, 10**6))
def test_a_permutation_is_one(size: int, seed: int, number: int) -> None:
    found = permuted(np.arange(size), size, seed, 0, number)
    assert sorted(found.tolist()) == list(range(size))


def test_places_of_several_passes_are_permuted_pass_by_pass() -> None:
    places, passes = np.tile(np.arange(20), 3), np.repeat(np.arange(3), 20)
    together = permuted(places, 20, 7, 1, passes).reshape(3, 20)
    alone = np.stack([permuted(np.arange(20), 20, 7, 1, number) for number in range(3)])
    np.testing.assert_array_equal(together, alone)
    assert len({tuple(row) for row in together.tolist()}) == 3


def test_a_permutation_of_more_than_memory_holds() -> None:
    size = 10**13 + 7
    found = permuted(np.arange(size - 1000, size), size, 0, 0, 0)
    assert len(set(found.tolist())) == 1000
    assert 0 <= found.min() < size / 100
    assert found.max() < size


def test_permutations_are_spread_evenly() -> None:
    """Over passes: where a block comes, and which block comes after which, by chi-squared."""
    size, passes = 12, 20_000
    numbers = np.repeat(np.arange(passes), size)
    found = permuted(np.tile(np.arange(size), passes), size, 0, 0, numbers).reshape(passes, size)
    for table in (
        np.stack([np.bincount(column, minlength=size) for column in found.T]),
        np.bincount((found[:, 1:] * size + found[:, :-1]).ravel(), minlength=size**2).reshape(size, size),
    ):
        seen = table[~np.eye(size, dtype=bool)] if not np.diagonal(table).any() else table.ravel()
        expected = seen.mean()
        statistic = ((seen - expected) ** 2 / expected).sum()
        assert abs(statistic - len(seen)) < 6 * np.sqrt(2 * len(seen))


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 400), seed=SEEDS, epoch=st.integers(0, 9), data=st.data())
def test_any_stretch_is_computed_by_itself(size: int, seed: int, epoch: int, data: st.DataObject) -> None:
    weights = tuple(data.draw(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=3)))
    mixture = MixtureOrder(tuple(data.draw(st.integers(1, 200)) for _ in weights), weights, seed)
    files = tuple(data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=9)))
    windowed = WindowedOrder(files, data.draw(st.integers(1, 4)), seed)
    bounded = MixtureOrder((windowed.size, 9), (2, 1), seed, (windowed, WindowedOrder((4, 5), 1, seed, 1)))
    for order in (ShuffledOrder(size, seed), mixture, windowed, bounded):
        start, stop = sorted((data.draw(st.integers(0, order.size)), data.draw(st.integers(0, order.size))))
        whole = order.blocks(epoch, 0, order.size)
        np.testing.assert_array_equal(order.blocks(epoch, start, stop), whole[start:stop])
        assert order.blocks(epoch, order.size - 1, order.size).tolist() == whole[-1:].tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(ShuffledOrder(50, seed).blocks(epoch, 0, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@settings(max_examples=15, deadline=None)
@given(weights=st.lists(st.floats(0.05, 5.0), min_size=1, max_size=4), seed=SEEDS)
def test_a_mixture_takes_its_shares_and_every_block_as_often(weights: list[float], seed: int) -> None:
    sizes = (700, 3, 4000, 50)[: len(weights)]
    order = MixtureOrder(sizes, tuple(weights), seed)
    epochs = [order.blocks(epoch, 0, order.size) for epoch in range(-(-2 * PERIOD // order.size))]
    draws = np.concatenate(epochs)[: 2 * PERIOD]
    ends = np.cumsum(sizes)
    for half in (draws[:PERIOD], draws[PERIOD:]):
        taken = np.bincount(np.searchsorted(ends, half, side="right"), minlength=len(sizes))
        assert tuple(taken.tolist()) == order.draws_per_period
    for count, weight in zip(order.draws_per_period, weights, strict=True):
        assert count == pytest.approx(PERIOD * weight / sum(weights), abs=1)
    times = np.bincount(draws, minlength=order.size)
    for corpus, size in enumerate(sizes):
        of_corpus = times[ends[corpus] - size : ends[corpus]]
        assert of_corpus.sum() == 2 * order.draws_per_period[corpus]
        assert of_corpus.max() - of_corpus.min() <= 1


def test_short_stretches_of_a_mixture_have_about_its_shares() -> None:
    order = MixtureOrder((5000, 5000), (3.0, 1.0), 0)
    for epoch in range(3):
        share = float((order.blocks(epoch, 0, 400) >= 5000).mean())
        assert share == pytest.approx(0.25, abs=0.08)


def test_a_share_that_is_too_small_is_refused() -> None:
    with pytest.raises(CoCoMixError, match=r"corpus 2.*1/10,000"):
        MixtureOrder((10, 10), (1.0, 1e-5), 0).blocks(0, 0, 1)


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(1, 200),
    batch_size=st.integers(1, 8),
    processes=st.sampled_from([1, 2, 4]),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_processes_share_every_batch(size: int, batch_size: int, processes: int, drop_last: bool, epoch: int) -> None:
    order = ShuffledOrder(size, 5)
    alone = StepBatches(order, batch_size * processes, drop_last=drop_last)
    parts = [
        StepBatches(order, batch_size, processes=processes, process=process, drop_last=drop_last)
        for process in range(processes)
    ]
    for sampler in (alone, *parts):
        sampler.set_epoch(epoch)
    together = list(zip(*parts, strict=True))
    assert len(together) == len(alone) == len(parts[0]) == len(list(alone))
    for whole, shared in zip(alone, together, strict=True):
        assert len({len(part) for part in shared}) == 1
        blocks = sorted(block for part in shared for block in part)
        assert [block for block in blocks if block < size] == sorted(whole)
        assert len(blocks) - len(whole) < processes


def test_passed_over_batches_are_not_computed() -> None:
    computed = []

    class Counted:
        size = 10**12

        def blocks(self, epoch: int, start: int, stop: int) -> np.ndarray:
            computed.append(start)
            return np.arange(start, stop)

    sampler = StepBatches(Counted(), 4)
    sampler.pass_over(100_000)
    assert next(islice(sampler, 100_000, None)) == [400_000, 400_001, 400_002, 400_003]
    assert computed == [400_000]
    assert next(iter(sampler)) == [0, 1, 2, 3]  # once


def test_a_window_by_its_definition() -> None:
    """File by file: an order of all files, and of the blocks of every two of them."""
    files, order = (3, 1, 4, 2, 5), WindowedOrder((3, 1, 4, 2, 5), 2, seed=8)
    blocks = [list(range(sum(files[:number]), sum(files[: number + 1]))) for number in range(len(files))]
    for epoch in (0, 1):
        expected: list[int] = []
        turns = permuted(np.arange(5), 5, 8, "files 0", epoch).tolist()
        for window in range(3):
            members = turns[2 * window : 2 * window + 2]
            pool = [block for file in members for block in blocks[file]]
            places = permuted(np.arange(len(pool)), len(pool), 8, "window 0", 3 * epoch + window)
            assert order.windows(epoch, len(expected))[0] == tuple(members)
            expected += [pool[place] for place in places]
            if window < 2:
                assert order.windows(epoch, len(expected) - 1)[1] == order.windows(epoch, len(expected))[0]
        assert order.blocks(epoch, 0, order.size).tolist() == expected
    assert order.windows(0, 14)[1] == order.windows(1, 0)[0]
