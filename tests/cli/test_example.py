"""`--example`: the student that comes with cocomix, read where it lies."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocomix.artifacts import verify
from cocomix.explorer import open_subject
from cocomix.interpret import ConceptAtlas, default_atlas_folder
from cocomix.runtime.packaged import packaged_folder
from cocomix.training import Run
from tests.command_line import Cli

FOLDER = packaged_folder("first_look")
STUDENT = FOLDER / "student"


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """An installed package may be read-only."""

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*")}

    before = state()
    yield
    assert state() == before


def test_it_is_small_whole_and_from_nowhere() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    for path in (STUDENT, default_atlas_folder(STUDENT)):
        assert not verify(path).broken
    for name in ("student/manifest.json", "student/recipe.yaml", "student_atlas/manifest.json"):
        assert not re.search(r"[\s\"]/\w", (FOLDER / name).read_text(encoding="utf-8"))


def test_it_is_generated_from_steered_inspected_and_searched(cli: Cli) -> None:
    told = [
        cli("generate", "This class", "--example", "--max-new-tokens", 24, *more).out
        for more in ((), ("--steer", "854+8"))
    ]
    assert all(text.startswith("This class") and len(text) > 30 for text in told)
    assert told[0] != told[1]
    concept = ConceptAtlas.open(default_atlas_folder(STUDENT)).name(854)
    assert concept in cli("atlas", "--example", "--concept", 854).out
    assert cli("inspect", "--example", "Return the number of items.").out.count("[") > 5
    assert "854" in cli("atlas", "--example", "--search", concept.split(",")[0]).out
    assert "--search TEXT" in cli.refuses("atlas", "--example", says=str(default_atlas_folder(STUDENT)))


def test_the_explorer_opens_it_with_its_atlas() -> None:
    subject = open_subject(STUDENT)
    assert subject.run.manifest.fingerprint == Run.open(STUDENT).manifest.fingerprint
    assert subject.atlas is not None
    assert subject.find("file")
    assert isinstance(subject.teacher, str)  # why it is not here


def test_only_verbs_that_read_take_it_in_the_place_of_a_run(cli: Cli) -> None:
    assert cli("eval", "--example", status=2).err
    assert cli("explore", "runs/x", "--example", status=2).err
    cli.refuses("inspect", "no_run", "--", "--example", says="no_run does not exist")
