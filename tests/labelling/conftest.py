"""Labelling is tested with the tiny teachers and dictionaries of `tests/concepts`, on small token folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cocomix.data import Tokens
from cocomix.labelling import block_functions
from tests.concepts.conftest import *  # noqa: F403

from .tiny import toy_tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return toy_tokens(tmp_path / "data")


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Interrupts the computation once, after so many shards; the list grows with every shard."""

    def after(shards: int) -> list[int]:
        done: list[int] = []
        original, still = block_functions.BlockFunction.__call__, [True]

        def counted(self: Any, tokens: Any) -> Any:
            if len(done) == shards and still:
                still.clear()
                raise KeyboardInterrupt
            done.append(len(tokens))
            return original(self, tokens)

        monkeypatch.setattr(block_functions.BlockFunction, "__call__", counted)
        return done

    return after
