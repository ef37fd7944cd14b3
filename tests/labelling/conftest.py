"""Labelling is tested with the tiny teachers and dictionaries of `tests/concepts`."""

import numpy as np

from tests.concepts.conftest import *  # noqa: F403


class TokenShard:
    """Random token blocks in memory."""

    def __init__(self, name: str, blocks: int, seed: int, block_size: int) -> None:
        self.name, self.num_blocks = name, blocks
        self.tokens = np.random.default_rng(seed).integers(1, VOCAB, (blocks, block_size)).astype(np.uint16)  # noqa: F405

    def read(self) -> np.ndarray:
        return self.tokens
