"""Labelling is tested with the tiny teachers and dictionaries of `tests/concepts`, on small token folders."""

from pathlib import Path

import pytest

from cocomix.data import Tokens
from tests.concepts.conftest import *  # noqa: F403

from .tiny import toy_tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return toy_tokens(tmp_path / "data")
