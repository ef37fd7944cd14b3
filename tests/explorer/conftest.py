"""A small run with room for prompts, its atlas and its teacher, and the page in a browser."""

import shutil
import socket
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.evaluation import Run
from cocomix.explorer import Subject, open_subject, serving
from cocomix.interpret import AtlasSettings, build_atlas
from tests.workshop import Workshop, prepare_toy

CHROMIUM = shutil.which("chromium")
CONTEXT = 48


class RoomyWorkshop(Workshop):
    """The workshop with blocks, and so a context, of 48 tokens, and a student that has learned a little."""

    @cached_property
    def data(self) -> Path:
        return prepare_toy(self.corpus, self.folder / "data", block_size=CONTEXT).path

    def values(self, objective: str, **changes: Any) -> dict[str, Any]:
        values = super().values(objective, **{"tokens": 9_000, **changes})
        values["training"] |= {"save_steps": 1_000}
        return values


@pytest.fixture(scope="session")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> RoomyWorkshop:
    return RoomyWorkshop(tmp_path_factory.mktemp("explorer"))


@pytest.fixture(scope="session")
def subject(roomy: RoomyWorkshop) -> Subject:
    """The run with everything: atlas, teacher, another run beside it."""
    build_atlas(
        Run.open(roomy.cocomix_run), settings=AtlasSettings(tokens=2_000, effects=4), device=torch.device("cpu")
    )
    return open_subject(roomy.cocomix_run, compare_with=[roomy.ntp_run])


@pytest.fixture(scope="session")
def bare(roomy: RoomyWorkshop, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A copy of the run whose data and labels are gone, without an atlas."""
    folder = tmp_path_factory.mktemp("bare") / "run"
    shutil.copytree(roomy.cocomix_run, folder)
    manifest = (folder / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(manifest.replace(str(roomy.folder), "/gone"), encoding="utf-8")
    return open_subject(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def address(subject: Subject) -> Iterator[str]:
    """Where the page is served."""
    with serving(subject, port=free_port()) as served:
        yield served
