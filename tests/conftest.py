"""One workshop for the whole session; threads only cost at this size."""

import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.command_line import Cli
from tests.workshop import Workshop

settings.register_profile("cocomix", deadline=None)  # a busy machine is no failure
settings.load_profile("cocomix")


@pytest.fixture(autouse=True, scope="session")
def _one_thread_everywhere() -> None:
    torch.set_num_threads(1)  # sums depend on the number of threads in their last bits


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("cocomix")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def progress_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line of `progress` comes at once rather than after seconds."""
    monkeypatch.setattr("cocomix.runtime.console._FIRST_LINE_SECONDS", 0.0)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))
