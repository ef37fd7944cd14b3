"""Which block a run sees when: a pure function of the seed and the place in the run, never a stored permutation.

Any stretch of any epoch is computed by itself (`cocomix.data.permutation`): going on at step one million costs what
going on at step one does, and neither loader workers nor processes change the order.
"""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, lru_cache
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from cocomix.data.permutation import Indices, permuted
from cocomix.runtime.errors import CoCoMixError

PERIOD = 10_000
"""Draws after which a mixture has taken exactly its shares from every corpus (our choice: shares of at least 0.01%)."""


@dataclass(frozen=True)
class ShuffledOrder:
    """Every block once an epoch, each epoch in another order.

    The `first` blocks, from the beginning of the data, come before all others, each part shuffled by itself.
    """

    size: int  # number of blocks
    seed: int
    first: int = 0

    def blocks(self, epoch: int, start: int, stop: int) -> Indices:
        """The blocks at places `start` to `stop` of an epoch. [stop − start]"""
        middle = min(max(self.first, start), stop)
        before = permuted(np.arange(start, middle), max(self.first, 1), self.seed, "first", epoch)
        after = permuted(np.arange(middle, stop) - self.first, max(self.size - self.first, 1), self.seed, 0, epoch)
        return np.concatenate((before, self.first + after))


@dataclass(frozen=True)
class WindowedOrder:
    """Every block once an epoch, with few files read at a time.

    Files come in an order of the epoch's own, and the blocks of every `window` files in a row are shuffled among
    themselves. Blocks are numbered through, file after file.
    """

    files: tuple[int, ...]  # blocks of each file
    window: int
    seed: int
    corpus: int = 0  # tells the orders of a mixture's corpora apart

    @cached_property
    def size(self) -> int:
        """Blocks of an epoch."""
        return sum(self.files)

    def blocks(self, epoch: int, start: int, stop: int) -> Indices:
        """The blocks at places `start` to `stop` of an epoch. [stop − start]"""
        places = np.arange(start, stop)
        return self.at(np.full_like(places, epoch), places)

    def at(self, epochs: Indices, places: Indices) -> Indices:
        """The blocks at places, each of the epoch beside it. [n]"""
        found = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            files, starts = _arranged(self, epoch)
            firsts = starts[: -1 : self.window]  # of each window
            windows = np.searchsorted(firsts, places, side="right") - 1
            for window in np.unique(windows[epochs == epoch]).tolist():
                here = (epochs == epoch) & (windows == window)
                first, size = firsts[window], [*firsts, self.size][window + 1] - firsts[window]
                number = epoch * len(firsts) + window
                inside = permuted(places[here] - first, int(size), self.seed, f"window {self.corpus}", number)
                shuffled = first + inside
                at = np.searchsorted(starts, shuffled, side="right") - 1
                found[here] = self._first_blocks[files[at]] + shuffled - starts[at]
        return found

    def windows(self, epoch: int, place: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The files of the window that a place of an epoch is in, and those of the window after it."""
        files, starts = _arranged(self, epoch)
        first = (int(np.searchsorted(starts, place, side="right")) - 1) // self.window * self.window
        after = files[first + self.window :] if first + self.window < len(files) else _arranged(self, epoch + 1)[0]
        return tuple(files[first : first + self.window].tolist()), tuple(after[: self.window].tolist())

    @cached_property
    def _first_blocks(self) -> Indices:
        """The number of each file's first block. [files]"""
        return np.concatenate(([0], np.cumsum(self.files)))[:-1]


@lru_cache(maxsize=64)  # two epochs of every corpus
def _arranged(order: WindowedOrder, epoch: int) -> tuple[Indices, Indices]:
    """An epoch's files in order, and at which place each begins and the last ends. [files], [files + 1]"""
    files = permuted(np.arange(len(order.files)), len(order.files), order.seed, f"files {order.corpus}", epoch)
    return files, np.concatenate(([0], np.cumsum(np.asarray(order.files)[files])))


@dataclass(frozen=True)
class MixtureOrder:
    """Corpora in given shares; within a corpus every block once before any comes again, each pass in another order.

    Of every `PERIOD` draws, in an order of their own, each corpus has exactly its share. An epoch has as many draws as
    the corpora have blocks together: with other shares than their sizes, some blocks come several times in it and some
    in a later one. Blocks are numbered through, in the order of the corpora.
    """

    sizes: tuple[int, ...]  # blocks of each corpus
    weights: tuple[float, ...]  # share of each corpus, in any unit
    seed: int
    within: tuple[WindowedOrder, ...] = ()  # of each corpus; by default all its blocks are shuffled among themselves

    @property
    def size(self) -> int:
        """Draws of an epoch."""
        return sum(self.sizes)

    @cached_property
    def draws_per_period(self) -> tuple[int, ...]:
        """Draws of each corpus in a period, by largest remainder; refused where one has none."""
        exact = np.asarray(self.weights, dtype=np.float64) / sum(self.weights) * PERIOD
        counts = np.floor(exact).astype(np.int64)
        rest = np.argsort(counts - exact, kind="stable")[: PERIOD - int(counts.sum())]
        counts[rest] += 1
        if counts.min() == 0:
            raise CoCoMixError(
                f"corpus {int(counts.argmin()) + 1} of the mixture has a share below 1/{PERIOD:,}; raise its weight or "
                "leave it out."
            )
        return tuple(counts.tolist())

    def blocks(self, epoch: int, start: int, stop: int) -> Indices:
        """The blocks at places `start` to `stop` of an epoch. [stop − start]"""
        corpora, numbers = self._drawn(epoch * self.size + np.arange(start, stop))
        found, first = np.empty_like(numbers), 0
        for corpus, size in enumerate(self.sizes):
            here = corpora == corpus
            passes, places = np.divmod(numbers[here], size)
            if self.within:
                found[here] = first + self.within[corpus].at(passes, places)
            else:
                found[here] = first + permuted(places, size, self.seed, corpus + 1, passes)
            first += size
        return found

    def windows(self, epoch: int, place: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """`WindowedOrder.windows` of every corpus."""
        reached = map(divmod, self.taken(0, epoch * self.size + place), self.sizes)
        return [order.windows(*at) for order, at in zip(self.within, reached, strict=True)]

    def taken(self, start: int, stop: int) -> tuple[int, ...]:
        """Draws of each corpus among those numbered `start` to `stop`, counted through all epochs."""
        return tuple((self._taken(stop) - self._taken(start)).tolist())

    def _taken(self, draws: int) -> Indices:
        periods, rest = divmod(draws, PERIOD)
        corpora, _ = self._drawn(np.arange(draws - rest, draws))
        return periods * np.asarray(self.draws_per_period) + np.bincount(corpora, minlength=len(self.sizes))

    def _drawn(self, draws: Indices) -> tuple[Indices, Indices]:
        """Of each draw, its corpus and its number among the draws of that corpus. [n] each"""
        counts = np.asarray(self.draws_per_period)
        ends = np.cumsum(counts)
        periods, places = np.divmod(draws, PERIOD)
        slots = permuted(places, PERIOD, self.seed, 0, periods)
        corpora = np.searchsorted(ends, slots, side="right")
        return corpora, periods * counts[corpora] + slots - (ends - counts)[corpora]


BlockOrder = ShuffledOrder | WindowedOrder | MixtureOrder
"""Of the blocks of a run, epoch by epoch."""


class Reading(NamedTuple):
    """A block, and the columns that are read of it beside its tokens."""

    block: int
    needs: frozenset[str]


@dataclass(eq=False)
class StepBatches(Sampler[list[Any]]):
    """One process's batches of block numbers.

    Of every `batch_size · processes` blocks of the order, process p takes those at places p, p + processes, …; so the
    blocks of a step do not depend on how many processes share them. Where an epoch's last blocks do not go round, the
    processes left over get the number `order.size`, which stands for a block without targets.
    """

    order: BlockOrder
    batch_size: int  # blocks of a batch, per process
    _: KW_ONLY
    processes: int = 1
    process: int = 0  # which of them this one is
    drop_last: bool = False  # leave out what does not fill a batch of all processes
    needs: Callable[[int, int], frozenset[str]] | None = None  # columns read, by epoch and batch; then of `Reading`
    reached: Callable[[int, int], None] | None = None  # is told the epoch and place of every batch
    epoch: int = field(default=0, init=False)
    _passed_over: int = field(default=0, init=False)

    def __len__(self) -> int:
        whole, rest = divmod(self.order.size, self.batch_size * self.processes)
        return whole + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        self.epoch = epoch

    def pass_over(self, batches: int) -> None:
        """Have the next iteration begin with so many empty batches, for a caller who counts and discards them."""
        self._passed_over = batches

    def __iter__(self) -> Iterator[list[Any]]:
        passed_over, self._passed_over = self._passed_over, 0
        yield from repeat([], passed_over)
        step = self.batch_size * self.processes
        for batch in range(passed_over, len(self)):
            start = batch * step
            stop = min(start + step, self.order.size)
            if self.reached is not None:
                self.reached(self.epoch, start)
            blocks = self.order.blocks(self.epoch, start, stop)
            share = -(-len(blocks) // self.processes)
            own = blocks[self.process :: self.processes].tolist()
            own += [self.order.size] * (share - len(own))
            needs = None if self.needs is None else self.needs(self.epoch, batch)
            yield own if needs is None else [Reading(block, needs) for block in own]
