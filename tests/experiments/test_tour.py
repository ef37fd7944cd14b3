"""The demo's plan on a small folder of text in place of this machine's documentation."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import cocomix.experiments.runner
import cocomix.experiments.tour
from cocomix.concepts import Dictionary, DictionaryConfig
from cocomix.evaluation import Run, evaluations_of
from cocomix.experiments.tour import OWN_TEACHER_PLAN, PLAN, _plan, run_demo
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.packaged import recipes_folder
from tests.command_line import Cli
from tests.evaluation.test_pages import Checker
from tests.workshop import Workshop

PARTS = ("data", "teacher", "dictionary", "labels", "probabilities")
RUNS = ("runs/ntp/seed0", "runs/distilled/seed0", "runs/cocomix/seed0", "runs/add_distilled/seed0")


@pytest.fixture(scope="module", autouse=True)
def small(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The plan without a packaged teacher at sizes that take seconds, on the workshop's text."""
    folder = tmp_path_factory.mktemp("plan")
    shutil.copytree(recipes_folder(), folder, dirs_exist_ok=True)
    plan = yaml.safe_load((folder / PLAN).read_text(encoding="utf-8"))
    assert plan["prepare"]["sources"] == ["docs:"]
    plan["prepare"]["sources"] = [str(workshop.corpus)]
    plan["common"]["training"]["per_device_train_batch_size"] = 2
    (folder / PLAN).write_text(yaml.safe_dump(plan))
    plan = yaml.safe_load((folder / OWN_TEACHER_PLAN).read_text(encoding="utf-8"))
    plan["prepare"] |= {"vocab_size": 290, "block_size": 64, "max_bytes": 9_000, "validation_fraction": 0.2}
    plan["fast"]["prepare"] = {"max_bytes": 9_000}
    plan["fast"]["common"] = {"tokens": 3_000}
    plan["fast"]["teacher"]["recipe"]["tokens"] = 6_000
    plan["fast"]["dictionary"]["tokens"] = 4096
    (folder / OWN_TEACHER_PLAN).write_text(yaml.safe_dump(plan))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cocomix.experiments.tour, "recipes_folder", lambda: folder)
        patched.setattr(cocomix.experiments.tour, "packaged_teacher", lambda file: False)
        yield


def test_the_packaged_teacher_comes_with_its_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cocomix.experiments.tour, "packaged_teacher", lambda file: True)
    loaded = _plan(tmp_path, fast=False)
    assert loaded.teacher is not None
    assert loaded.dictionary is not None
    assert Path(loaded.teacher.model) == tmp_path / "smollm2.gguf"
    dictionary = DictionaryConfig.model_validate(loaded.dictionary).load()  # and it is the pinned one
    concepts = {job.recipe.model.num_concepts for job in loaded.jobs()}
    assert concepts == {dictionary.n_concepts}
    assert dictionary.layer == loaded.teacher.layer
    shipped = Dictionary.open(loaded.dictionary["path"])
    assert not shipped.verify().broken
    assert shipped.manifest.dictionary_fingerprint == dictionary.fingerprint()
    assert shipped.manifest.report is not None
    assert shipped.manifest.report.flops  # which `compare` counts


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo that was stopped in every part before it came to its end."""
    directory = tmp_path_factory.mktemp("demo") / "demo"
    for place in ("prepare", "train", "fit_on_data", "label_and_distill", "evaluate_run", "write_report"):
        with pytest.MonkeyPatch.context() as patched:

            def stop(*arguments: Any, **settings: Any) -> None:
                raise KeyboardInterrupt

            patched.setattr(cocomix.experiments.runner, place, stop)
            with pytest.raises(KeyboardInterrupt):
                run_demo(directory, fast=True)
    run_demo(directory, fast=True)
    return directory


def test_every_part_is_there(directory: Path) -> None:
    for part in (*PARTS, *RUNS, "report"):
        assert (directory / part).is_dir(), part
    assert not list(directory.rglob("*.partial"))
    runs = [Run.open(directory / run) for run in RUNS]
    assert [run.manifest.mixing for run in runs] == [None, None, "interleave", "add"]
    assert [run.manifest.teaching is not None for run in runs] == [False, True, False, True]
    flops = [run.manifest.flops_per_token.training for run in runs]
    assert flops[0] == pytest.approx(flops[3], rel=0.1)
    for run in runs:
        (measured,) = evaluations_of(run)
        assert measured.references is not None
        assert (measured.reliance is None) == (run.manifest.mixing is None)


def test_the_report_answers_five_questions_and_looks_inside(directory: Path) -> None:
    checker = Checker((directory / "report" / "report.html").read_text(encoding="utf-8"))
    text = " ".join(checker.texts)
    for heading in ("One concept, inspected", "One generation, steered", "Look further", "Protocol"):
        assert heading in checker.texts
    assert "(bigram)" in text
    assert "a table of the current token" in text
    assert "another position of the same token" in text
    assert "seed0" in text
    assert "script" not in checker.tags


def test_a_second_call_keeps_what_is_there(directory: Path, cli: Cli) -> None:
    kept = [path for part in (*PARTS, *RUNS) for path in (directory / part).rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in kept}
    printed = cli("demo", directory, "--fast")
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert "\\" not in printed.out
    assert "add_distilled" in printed.out


def test_other_sizes_are_refused(directory: Path) -> None:
    with pytest.raises(CoCoMixError, match=r"trained by another recipe|another prepare"):
        run_demo(directory)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "demo"):
        with pytest.raises(CoCoMixError, match=r"notes\.txt"):
            run_demo(place, fast=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
