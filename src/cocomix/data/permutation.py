"""A permutation that is computed place by place, and never stored.

It is a Feistel network over the next power of four, walked until it lands below the size (Black and Rogaway 2002,
"Ciphers with arbitrary finite domains"). Its keys come from a seed and the pass's number, so that any stretch of any
pass is computed by itself.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_ROUNDS = 8
_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, and far from any simple fraction of 2**64

_Words = NDArray[np.uint64]


def permuted(places: Indices, size: int, seed: int, stream: int | str, passes: Indices | int) -> Indices:
    """Where places in passes over `size` things point to: numbers in [0, size), different for places of one pass. [n]

    `seed`, `stream` and the number of the pass, which `passes` gives for each place or for all, say which permutation
    it is. Places and passes are [n].
    """
    start = hashlib.blake2b(f"{seed}:{stream}".encode(), digest_size=8).digest()
    numbers = np.broadcast_to(passes, places.shape).astype(np.uint64)
    keys = scrambled(np.frombuffer(start, dtype="<u8") + numbers * _STEP)
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    values = _encrypted(places.astype(np.uint64), half, keys)
    while (outside := values >= size).any():
        values[outside] = _encrypted(values[outside], half, keys[outside])
    return values.astype(np.int64)


def _encrypted(values: _Words, half: int, keys: _Words) -> _Words:
    """A permutation, by key, of the numbers below 4 ** half."""
    width, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = values >> width, values & mask
    for _ in range(_ROUNDS):
        keys = keys + _STEP
        left, right = right, left ^ (scrambled(right + scrambled(keys)) & mask)
    return (left << width) | right


def scrambled(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), in which every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
