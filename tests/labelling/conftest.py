"""Labelling is tested with the tiny teachers and dictionaries of `tests/concepts`."""

from tests.concepts.conftest import *  # noqa: F403
