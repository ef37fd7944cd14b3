"""A full or read-only disk ends every verb that writes in one sentence, and the same command goes on afterwards.

The disk is a small tmpfs, so that what fails is the real thing, wherever a library meets it. Mounting needs to be root;
elsewhere these tests are skipped.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Cli
from tests.workshop import BLOCK, Workshop

MEGABYTES = 30
ROOM = 4096
"""Bytes that are free on the full disk: enough to begin, too little to end."""

pytestmark = pytest.mark.slow


def mount(folder: Path, *options: str) -> bool:
    return subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("mount") or not mount(folder, "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "none"):
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, room: int = ROOM) -> Path:
    """Write a file that leaves so many bytes free."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler = disk / "filler"
    filler.write_bytes(b"\1" * (free - room))
    return filler


def prepare(workshop: Workshop, disk: Path) -> tuple[Any, ...]:
    return ("prepare", workshop.corpus, "--vocab-size", 290, "--block-size", BLOCK, "-o", disk / "out")


def fit(workshop: Workshop, disk: Path) -> tuple[Any, ...]:
    sizes = ("--num-concepts", 48, "--k", 8, "--tokens", 4_000, "--batch-size", 256, "--learning-rate", 5e-3)
    return ("sae", workshop.data, "--teacher", workshop.teacher, "--layer", 1, *sizes, "-o", disk / "out")


def label(workshop: Workshop, disk: Path) -> tuple[Any, ...]:
    sources = ("--teacher", workshop.teacher, "--dictionary", workshop.dictionary)
    return ("label", workshop.data, *sources, "-o", disk / "out")


def distill(workshop: Workshop, disk: Path) -> tuple[Any, ...]:
    return ("distill", workshop.data, "--teacher", workshop.teacher, "--top-k", 8, "-o", disk / "out")


def training(workshop: Workshop, disk: Path) -> tuple[Any, ...]:
    return ("train", workshop.recipe_file(disk.parent / "r.yaml", "ntp", tokens=4 * 8 * BLOCK), "-o", disk / "out")


def evaluation(workshop: Workshop, disk: Path) -> tuple[Any, ...]:
    if not (disk / "run").exists():
        shutil.copytree(workshop.ntp_run, disk / "run")
    return ("eval", disk / "run", "--limit-blocks", 4)


def comparison(workshop: Workshop, disk: Path) -> tuple[Any, ...]:
    return ("compare", workshop.ntp_run, workshop.cocomix_run, "-o", disk / "out")


def atlas(workshop: Workshop, disk: Path) -> tuple[Any, ...]:
    return ("atlas", workshop.cocomix_run, "--tokens", 20 * BLOCK, "--effects", 1, "-o", disk / "out")


WRITERS = (prepare, fit, label, distill, training, evaluation, comparison, atlas)


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_a_full_disk(
    cli: Cli, workshop: Workshop, disk: Path, writer: Callable[[Workshop, Path], tuple[Any, ...]]
) -> None:
    command = writer(workshop, disk)
    filler = fill(disk, 0 if writer is evaluation else ROOM)  # an evaluation is smaller than the room
    cli.refuses(*command, says="No space left on device")
    assert not (disk / "out").exists()
    filler.unlink()
    cli(*command)
    assert (disk / "out").exists() or list((disk / "run" / "evaluations").glob("*/evaluation.json"))
    assert not list(disk.glob("*.partial"))


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_a_read_only_disk(
    cli: Cli, workshop: Workshop, disk: Path, writer: Callable[[Workshop, Path], tuple[Any, ...]]
) -> None:
    command = writer(workshop, disk)
    assert mount(disk, "-o", "remount,ro")
    cli.refuses(*command, says="Read-only file system")
    assert not (disk / "out").exists()
