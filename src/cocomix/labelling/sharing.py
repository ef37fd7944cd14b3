"""One data set labelled by jobs that share a folder, such as the tasks of a Slurm array.

Each job labels its part of the shards. All write to the same `NAME.partial`, where every file appears by a rename, so
that jobs may run in any order, at the same time and more than once. The job that finds all shards recorded completes
the folder; where none does, because one was killed or the file system showed its files late, `finish_labels` does.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cocomix.artifacts.output import write_once
from cocomix.runtime.errors import CoCoMixError

__all__ = ["FINISHING", "ShardPart", "claim_finish"]

FINISHING = "finishing.json"
"""Within the partial folder: a job has begun to complete it."""

T = TypeVar("T")


@dataclass(frozen=True)
class ShardPart:
    """Part `index` of `count`, counted from 0: every `count`-th shard, from number `index` on.

    Attributes:
        index: which part.
        count: how many there are.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "ShardPart":
        """Read `i/n`.

        Raises:
            CoCoMixError: it is not of this form, or i is not one of 0, …, n − 1.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if found is None:
            raise CoCoMixError(f"--shard {text} is not of the form i/n, such as 0/8 for the first of eight parts.")
        index, count = map(int, found.groups())
        if not index < count:
            numbers = f"parts count from 0, so that the last of {count} is {count - 1}/{count}" if count else "n is 0"
            raise CoCoMixError(f"--shard {text} does not exist: {numbers}.")
        return cls(index, count)

    def of(self, shards: Sequence[T]) -> list[T]:
        """The shards of this part, in order; the same whatever is finished already."""
        return list(shards[self.index :: self.count])

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def claim_finish(folder: Path, part: ShardPart) -> bool:
    """Whether the caller is the one job that completes the folder."""
    return write_once(folder / FINISHING, {"part": str(part)})
