"""Token shards and functions of them for the tests of `map_shards`; importable by worker processes."""

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cocomix.labelling.map_shards import Arrays
from cocomix.labelling.stored_arrays import StoredFile
from cocomix.runtime.errors import CoCoMixError

BLOCK = 5
FIRST = {"train-00000": 0, "train-00001": 500, "validation-00000": 1000}


@dataclass(frozen=True)
class Blocks:
    """A range of blocks whose tokens follow from their numbers."""

    file: StoredFile
    start: int
    stop: int

    def read(self) -> NDArray[Any]:
        first = FIRST[self.file.name]
        return np.arange(first + self.start * BLOCK, first + self.stop * BLOCK, dtype=np.uint16).reshape(-1, BLOCK)


def toy_shards() -> list[Blocks]:
    """Two files in shards of two blocks, and one with a single block."""
    ranges = {"train-00000": 5, "train-00001": 4, "validation-00000": 1}
    return [
        Blocks(StoredFile(name=file, blocks=n), at, min(at + 2, n))
        for file, n in ranges.items()
        for at in range(0, n, 2)
    ]


@dataclass
class Doubled:
    """Twice the tokens, and which process it was set up in; what goes wrong is told by `trouble`.

    Attributes:
        trouble: token at the beginning of a shard → what happens there: `error`, `refused`, `killed`, `killed once`.
        journal: folder where every begun shard and every `setup` leaves a file.
    """

    journal: Path
    trouble: dict[int, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ("twice", "sums")
    verb: str = "double"
    block_size: int = BLOCK
    ready: bool = field(default=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ready": False}

    def setup(self, device: torch.device) -> None:
        if "setup" in self.trouble.values():
            raise CoCoMixError("there is no such model here.")
        self.note("setup")
        self.ready = True

    def __call__(self, tokens: NDArray[Any]) -> Arrays:
        assert self.ready
        first = int(tokens[0, 0])
        before = self.begun(first)
        self.note(f"begun-{first}")
        trouble = self.trouble.get(first, "")
        if trouble.startswith("wait"):
            time.sleep(float(trouble.split()[1]))
        if trouble == "killed" or (trouble == "killed once" and not before):
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "error" or (trouble == "error once" and not before):
            raise RuntimeError("no memory left on the device")
        if trouble == "refused":
            raise CoCoMixError(f"token {first} is refused.")
        if trouble == "interrupt":
            raise KeyboardInterrupt
        return {"twice": 2 * tokens.astype(np.uint32), "sums": tokens.sum(-1).astype(np.float32)}

    def note(self, what: str) -> None:
        self.journal.mkdir(exist_ok=True)
        (self.journal / f"{what}.{os.getpid()}.{time.monotonic_ns()}").touch()

    def begun(self, first: int) -> int:
        """How often the shard with this first token was begun."""
        return len(list(self.journal.glob(f"begun-{first}.*")))
