"""The demo, stage by stage, on a small folder of text in place of this machine's documentation."""

import logging
from pathlib import Path
from typing import Any

import pytest

import cocomix.experiments.tour
import cocomix.experiments.tour_report
from cocomix.artifacts import read_json
from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.experiments.tour import DemoSizes, run_demo
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.recipes_folder import recipes_folder
from tests.workshop import Workshop

SIZES = DemoSizes(
    text_bytes=9_000,
    vocab_size=290,
    block_size=64,
    dictionary_tokens=4096,
    teacher_tokens=6_000,
    student_tokens=3_000,
)
STAGES = ("data", "teacher", "dictionary", "labels", "runs/ntp", "runs/cocomix", "runs/cocomix_residual", "report")


@pytest.fixture(scope="module", autouse=True)
def small(workshop: Workshop) -> Any:
    """The demo's own text is the documentation on this machine, which takes seconds to list."""
    patched = pytest.MonkeyPatch()
    original = cocomix.experiments.tour.prepare

    def prepare(settings: Any, output: Path) -> Tokens:
        assert settings.sources == ("docs:",)
        return original(settings.model_copy(update={"sources": (str(workshop.corpus),)}), output)

    patched.setattr(cocomix.experiments.tour, "prepare", prepare)
    patched.setattr(cocomix.experiments.tour, "FAST", SIZES)
    yield
    patched.undo()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A demo that was stopped in every stage before it came to its end."""
    directory = tmp_path_factory.mktemp("demo") / "demo"
    places = ("prepare", "train", "fit_on_data", "label_data", "write_demo_report")
    for place in places:
        with pytest.MonkeyPatch.context() as patched:

            def stop(*args: Any, **kwargs: Any) -> None:
                raise KeyboardInterrupt

            patched.setattr(cocomix.experiments.tour, place, stop)
            with pytest.raises(KeyboardInterrupt):
                run_demo(directory, fast=True)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("cocomix.experiments")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return directory, run_demo(directory, fast=True), said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_every_stage_is_there(finished: tuple[Path, Path, list[str]]) -> None:
    directory, page, _ = finished
    for stage in STAGES:
        assert (directory / stage).is_dir(), stage
    assert not list(directory.rglob("*.partial"))
    assert page.is_file()
    assert page.is_relative_to(directory / "report")
    manifests = [Run.open(directory / stage).manifest for stage in STAGES[4:7]]
    assert [manifest.objective for manifest in manifests] == ["ntp", "cocomix", "cocomix"]
    assert [manifest.mixing for manifest in manifests] == [None, "interleave", "residual"]
    assert len({manifest.tokens for manifest in manifests}) == 1
    active = [manifest.parameters.active for manifest in manifests]
    assert max(active) < 1.2 * min(active)
    for stage in STAGES[4:7]:
        (written,) = (directory / stage / "evaluations").glob("*/evaluation.json")
        assert read_json(written)["dtype"] == "float32"


def test_the_table_and_the_page(finished: tuple[Path, Path, list[str]]) -> None:
    _, page, said = finished
    html = page.read_text(encoding="utf-8")
    text = "\n".join(said)
    for name in ("NTP", "CoCoMix", "CoCoMix residual"):
        assert f"| {name}" in text
        assert name in html
    for heading in ("Final evaluation", "One concept, inspected", "One generation, steered", "Look further"):
        assert heading in html
    assert "<table" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "<script src" not in html
    assert page.resolve().as_uri() in text
    for number in range(1, 9):
        assert f"[{number}/8]" in text


def test_a_second_call_keeps_what_is_there(finished: tuple[Path, Path, list[str]]) -> None:
    directory, page, _ = finished
    kept = [path for stage in STAGES[:7] for path in (directory / stage).rglob("*") if "evaluations" not in path.parts]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert run_demo(directory, fast=True) == page
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_other_sizes_are_refused(finished: tuple[Path, Path, list[str]]) -> None:
    directory, _, _ = finished
    with pytest.raises(CoCoMixError, match="other sizes"):
        run_demo(directory)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "demo"):
        with pytest.raises(CoCoMixError, match=r"notes\.txt"):
            run_demo(place, fast=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_recipes_are_found() -> None:
    for file in ("demo_teacher.yaml", *cocomix.experiments.tour.ARMS.values()):
        assert (recipes_folder() / file).is_file()
