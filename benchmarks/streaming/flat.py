"""Flat token files at a URL, fetched when needed into a cache of bounded size: a prototype, the smallest that is exact.

Block number `index` of a run is a pure function of seed and index: files come in a new order every epoch, and the
blocks of `window` files that follow one another are shuffled among themselves. So the state to resume from is one
number, and a process needs about `window` files at a time.
"""

import json
import os
import time
from pathlib import Path

import fsspec
import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import Dataset

from cocomix.data.permutation import permuted

__all__ = ["Cache", "FlatBlocks"]

_ATTEMPTS = 5
_WAIT_SECONDS = 0.2  # doubled after every failed attempt


class Cache:
    """Files of a remote folder, at most `limit` bytes of them; shared by processes."""

    def __init__(self, url: str, folder: Path, limit: int | None) -> None:
        self.url, self.folder, self.limit = url, folder, limit
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, size: int | None = None) -> Path:
        """The local file; fetched if it is not there, others deleted to make room for it."""
        path = self.folder / name
        if path.exists():
            os.utime(path)
            return path
        with FileLock(self.folder / ".lock"):  # one download at a time, so that the limit holds
            if not path.exists():
                self._make_room(size or 0)
                self._fetch(name, path, size)
        return path

    def _make_room(self, size: int) -> None:
        if self.limit is None:
            return
        files = sorted(self.folder.glob("*.bin"), key=lambda path: path.stat().st_mtime)
        used = sum(path.stat().st_size for path in files)
        while files and used + size > self.limit:
            used -= files[0].stat().st_size
            files.pop(0).unlink()  # who has it mapped keeps reading it

    def _fetch(self, name: str, path: Path, size: int | None) -> None:
        part = path.with_suffix(".part")
        for attempt in range(_ATTEMPTS):
            try:
                system, place = fsspec.core.url_to_fs(f"{self.url}/{name}", **_options(self.url))
                content = system.cat_file(place)
                if size is not None and len(content) != size:
                    raise OSError(f"{self.url}/{name}: {len(content)} of {size} bytes arrived")
                part.write_bytes(content)
                part.rename(path)
                return
            except FileNotFoundError:
                raise
            except Exception as error:
                if attempt + 1 == _ATTEMPTS:
                    raise OSError(f"{self.url}/{name} could not be read in {_ATTEMPTS} attempts: {error!r}") from error
                time.sleep(_WAIT_SECONDS * 2**attempt)


def _options(url: str) -> dict[str, object]:
    """Against S3, no retries of botocore: s3fs' own, of which each would be multiplied, and ours are enough."""
    config = {"retries": {"max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60}
    return {"config_kwargs": config} if url.startswith("s3://") else {}


class FlatBlocks(Dataset[torch.Tensor]):
    """Shuffled blocks of all epochs, by number; picklable."""

    def __init__(self, url: str, folder: Path, *, limit: int | None = None, seed: int = 0, window: int = 4) -> None:
        self.cache, self.seed, self.window = Cache(url, folder, limit), seed, window
        manifest = json.loads(self.cache.get("manifest.json").read_text())
        self.block_size = manifest["block_size"]
        self.names = [file["name"] for file in manifest["files"]]
        self.sizes = np.asarray([file["blocks"] for file in manifest["files"]])
        self.blocks = int(self.sizes.sum())
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._inner: dict[int, np.ndarray] = {}
        self._open: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self.blocks * 1_000  # epochs

    def place(self, index: int) -> tuple[int, int]:
        """File and block within it that come at `index`."""
        epoch, place = divmod(index, self.blocks)
        if epoch not in self._orders:
            order = permuted(np.arange(len(self.names)), len(self.names), self.seed, 1, epoch)
            self._orders = {epoch: (order, np.concatenate([[0], np.cumsum(self.sizes[order])]))}
        order, starts = self._orders[epoch]
        first = int(np.searchsorted(starts, place, side="right") - 1) // self.window * self.window
        last = min(first + self.window, len(order))
        begin, size = int(starts[first]), int(starts[last] - starts[first])
        number = epoch * len(order) + first  # tells the windows of all epochs apart
        if number not in self._inner:  # of one window at a time
            self._inner = {number: permuted(np.arange(size), size, self.seed, 2, number)}
        inner = begin + int(self._inner[number][place - begin])
        file = int(np.searchsorted(starts, inner, side="right") - 1)
        return int(order[file]), inner - int(starts[file])

    def __getitem__(self, index: int) -> torch.Tensor:
        file, block = self.place(index)
        name = self.names[file]
        if name not in self._open:
            size = int(self.sizes[file]) * self.block_size * 2
            if len(self._open) >= self.window:
                self._open.pop(next(iter(self._open)))
            self._open[name] = np.memmap(self.cache.get(name, size), dtype="<u2").reshape(-1, self.block_size)
        return torch.from_numpy(np.array(self._open[name][block]))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}
