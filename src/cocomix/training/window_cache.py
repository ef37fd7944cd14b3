"""Training files at URLs of which this machine holds a few at a time: how many must fit, and which come next."""

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from cocomix.artifacts import FileCache, cache_folder
from cocomix.data import TRAIN, Tokens
from cocomix.labelling import Concatenated, StoredArrays
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.corpora import corpora_of
from cocomix.training.order import MixtureOrder, WindowedOrder
from cocomix.training.recipe_data import BoundedConfig

logger = logging.getLogger(__name__)

Fetched = tuple[Tokens | StoredArrays[Any], str]
"""An artefact at a URL, and the name of one of its files."""


class WindowCache:
    """Keeps a run's training files in a cache, in the process that trains; its loader workers read through it, too.

    A cache that is too small for the recipe's `window_files` is refused. `parts` are, of every corpus and each of its
    token files, what is fetched: it, and the arrays beside it that are read.
    """

    def __init__(
        self,
        bounds: BoundedConfig,
        data: Tokens,
        beside: Iterable[Concatenated[Any] | None],
        order: MixtureOrder | WindowedOrder,
    ) -> None:
        assert bounds.cache_gb is not None
        folder = cache_folder() / "bounded" / data.manifest.fingerprint[:16]
        self.cache = FileCache(folder, int(bounds.cache_gb * 1e9))
        self._order = order
        stores = [stored.parts for stored in beside if stored is not None]
        corpora = enumerate(corpora_of(data))
        self.parts = [_fetched(tokens, [parts[number] for parts in stores]) for number, tokens in corpora]
        self._refuse_too_small(bounds)
        for corpus in self.parts:
            for artifact in {id(artifact): artifact for file in corpus for artifact, _ in file}.values():
                names = {name for file in corpus for owner, name in file if owner is artifact}
                artifact.keep_in(self.cache, names)
        self._thread: threading.Thread | None = None
        self._begun: list[Fetched] = []

    def _refuse_too_small(self, bounds: BoundedConfig) -> None:
        largest = [max(map(_bytes, corpus)) for corpus in self.parts]
        windows = [min(bounds.window_files, len(corpus)) for corpus in self.parts]
        needed = sum(files * size for files, size in zip(windows, largest, strict=True)) + max(largest)
        if needed > self.cache.limit:
            raise CoCoMixError(
                f"data.cache_gb is {bounds.cache_gb:g}, and {needed / 1e9:.6g} are needed with data.window_files: "
                f"{bounds.window_files}, for {sum(windows)} files and the next, of up to {max(largest) / 1e9:.6g} GB "
                "with what is stored beside the tokens; give more, or prepare with a smaller --tokens-per-file."
            )

    def reach(self, epoch: int, place: int) -> None:
        """Have a thread fetch the files of the window that training begins to read, and as many of the next as fit."""
        now, coming = self._windows(epoch, place)
        if now == self._begun or (self._thread is not None and self._thread.is_alive()):
            return
        self._begun = now
        self._thread = threading.Thread(target=self._fetch, args=(now, coming), daemon=True)
        self._thread.start()

    def _windows(self, epoch: int, place: int) -> tuple[list[Fetched], list[Fetched]]:
        """What is read now, and what next, in the order of its files."""
        order = self._order
        windows = order.windows(epoch, place) if isinstance(order, MixtureOrder) else [order.windows(epoch, place)]
        now, coming = (
            [one for corpus, files in zip(self.parts, which, strict=True) for file in files for one in corpus[file]]
            for which in zip(*windows, strict=True)
        )
        return now, [one for one in coming if one not in now]

    def _fetch(self, now: Sequence[Fetched], coming: Sequence[Fetched]) -> None:
        together = 0
        try:
            for artifact, name in (*now, *coming):
                together += artifact.manifest.files[name].size
                if together <= self.cache.limit:  # the first files that fit together
                    artifact.file(name)
        except Exception as error:  # whoever reads the file meets it, too, and says so
            logger.debug("cannot fetch ahead: %s", error)


def _fetched(tokens: Tokens, stores: Sequence[StoredArrays[Any]]) -> list[list[Fetched]]:
    files: list[list[Fetched]] = [[(tokens, file.name)] for file in tokens.manifest.splits[TRAIN].files]
    for store in stores:
        for file, names in zip(files, store.split(TRAIN).files(), strict=True):
            file += [(store, name) for name in names]
    return [[(artifact, name) for artifact, name in file if artifact.url is not None] for file in files]


def _bytes(file: Sequence[Fetched]) -> int:
    return sum(artifact.manifest.files[name].size for artifact, name in file)
