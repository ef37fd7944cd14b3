"""A hash of a document's content, and the draw by which a document trains or validates.

Both depend on nothing but content and seed. So copies of a document are on one side, and files that are added, taken
away or put in another order move no other document.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from cocomix.data.permutation import scrambled


class DocumentHash:
    """The hash of a document, 8 bytes, from the pieces of its text as UTF-8, in order."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=8)

    def update(self, piece: bytes) -> None:
        """Add the next piece."""
        self._digest.update(piece)

    def value(self) -> int:
        """The hash of the pieces so far."""
        return int.from_bytes(self._digest.digest(), "little")


def draws_of(hashes: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A number for every document, uniform below 2^64; documents below `threshold_of` a fraction validate."""
    key = hashlib.blake2b(f"split:{seed}".encode(), digest_size=8).digest()
    return scrambled(hashes ^ np.frombuffer(key, dtype="<u8")[0])


def draw_of(document: int, seed: int) -> int:
    """The number of one document, from its hash."""
    return int(draws_of(np.array([document], dtype="<u8"), seed)[0])


def threshold_of(fraction: float) -> int:
    """The draw from which on documents train where this share of them is to validate."""
    return min(int(fraction * 2**64), 2**64 - 1)
