"""Concepts of a student's own: the shipped plans from raw text to the second generation, at the smallest size."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cocomix.concepts import Dictionary
from cocomix.evaluation import Run
from cocomix.evaluation.teacher_flops import dictionary_flops, flops_from_nothing, teacher_flops
from cocomix.experiments import load_plan
from cocomix.labelling import Labels
from cocomix.runtime.packaged import recipes_folder
from cocomix.training import train
from tests.command_line import Cli
from tests.workshop import BLOCK, VOCAB, Workshop, merged, write_corpus

PLANS = recipes_folder() / "plans"
SMALL = {"n_embd": 16, "n_layer": 3, "n_head": 2}
TINY: dict[str, Any] = {
    "seeds": [0],
    "common": {
        "tokens": 8 * 4 * BLOCK,
        "evaluation_blocks": 8,
        "model": {"backbone": SMALL, "insert_layer": 2, "num_concepts": 24, "concept_topk": 6},
        "training": {"per_device_train_batch_size": 4, "warmup_steps": 1},
    },
    "dictionary": {"num_concepts": 24, "k": 4, "tokens": 2048, "batch_size": 256},
}


def write(folder: Path, name: str, **changes: Any) -> Path:
    """A shipped plan at the smallest size."""
    values = yaml.safe_load((PLANS / name).read_text(encoding="utf-8"))
    values = merged(merged({key: value for key, value in values.items() if key != "fast"}, TINY), changes)
    text = yaml.safe_dump(values).replace("../", f"{recipes_folder()}/")
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def curve(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


def own(run: Run) -> float:
    return run.manifest.tokens * run.manifest.flops_per_token.training


def test_a_student_teaches_itself_and_the_next_one(tmp_path: Path, cli: Cli) -> None:
    prepare = {"sources": [str(write_corpus(tmp_path / "corpus"))], "vocab_size": VOCAB, "block_size": BLOCK}
    few, out = 4 * 4 * BLOCK, tmp_path / "out"
    changes = {"prepare": prepare, "teacher": {"recipe": {"tokens": few}}, "arms": {"continued": {"tokens": few}}}
    plan = write(tmp_path, "bootstrapped.yaml", **changes)
    result = json.loads(cli("sweep", plan, "-o", out, "--json", "-q").out)
    rows = {row["arm"]: row for row in result["comparison"]["arms"]}
    assert rows.keys() == {"ntp", "ntp_same_width", "scratch", "continued"}
    teacher = Run.open(out / "teacher")
    assert (teacher.manifest.objective, teacher.manifest.tokens) == ("ntp", few)
    fit = Dictionary.open(out / "dictionary").manifest.report.flops
    for name in ("scratch", "continued"):
        run = Run.open(out / "runs" / name / "seed0")
        labels = Labels.open(run.manifest.labels.path).manifest
        assert (labels.labels["kind"], labels.labels["teacher"]["model"]) == ("activation", str(out / "teacher"))
        spent = own(run) + own(teacher) + fit + teacher_flops(run)
        assert flops_from_nothing(run) == pytest.approx(spent)
        assert rows[name]["flops_from_nothing"] == pytest.approx(spent)
        assert rows[name]["flops_from_nothing_ratio"] == pytest.approx(spent / own(Run.open(out / "runs/ntp/seed0")))
    assert rows["ntp"]["flops_from_nothing"] == rows["ntp"]["flops"]
    continued, scratch = (curve(out / "runs" / name / "seed0") for name in ("continued", "scratch"))
    assert continued[0] < scratch[0] - 0.1  # it starts where the teacher ended

    arms, student = {"ntp": "../corpus_ntp.yaml"}, out / "runs" / "scratch" / "seed0"
    changes = {"common": {"data": str(out / "data")}, "teacher": {"model": str(student)}, "arms": arms}
    plan = write(tmp_path, "generations.yaml", **changes)
    cli("sweep", plan, "-o", tmp_path / "second", "-q")
    run = Run.open(tmp_path / "second" / "runs" / "scratch" / "seed0")
    spent = own(run) + (teacher_flops(run) or 0.0) + (dictionary_flops(run) or 0.0)
    assert flops_from_nothing(run) == pytest.approx(spent + (flops_from_nothing(Run.open(student)) or 0.0))


def test_cost_that_cannot_be_known(workshop: Workshop, tmp_path: Path) -> None:
    run = Run.open(workshop.cocomix_run)
    assert flops_from_nothing(run) == pytest.approx(
        own(run) + own(Run.open(workshop.teacher)) + (teacher_flops(run) or 0) + (dictionary_flops(run) or 0)
    )
    manifest = run.manifest.model_copy(update={"labels": None})
    assert flops_from_nothing(Run.open(workshop.ntp_run)) == own(Run.open(workshop.ntp_run))
    assert manifest.labels is None


@pytest.mark.parametrize("taught", ["stored probabilities", "hint"])
def test_the_teachers_training_is_part_of_the_cost(taught: str, workshop: Workshop, tmp_path: Path) -> None:
    """Also where the recipe has no `teacher:`."""
    how: dict[str, Any] = {"auxiliary": {"hint": {"teacher": {"model": str(workshop.teacher), "layer": 1}}}}
    if taught == "stored probabilities":
        how = {"distillation": {"targets": str(workshop.probabilities)}}
    run = Run.open(train(workshop.recipe("ntp", name="taught", tokens=8 * BLOCK, **how), tmp_path / "run"))
    spent = run.manifest.training_flops + (teacher_flops(run) or 0.0)
    assert flops_from_nothing(run) == pytest.approx(spent + own(Run.open(workshop.teacher)))


def test_going_on_from_the_teacher_needs_one(tmp_path: Path, cli: Cli) -> None:
    plan = write(tmp_path, "bootstrapped.yaml")
    values = {
        name: value for name, value in yaml.safe_load(plan.read_text()).items() if name not in ("teacher", "dictionary")
    }
    plan.write_text(yaml.safe_dump(values))
    cli.refuses("sweep", plan, "-o", tmp_path / "out", says="'continued'")


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_plans_resolve(path: Path, tmp_path: Path) -> None:
    assert load_plan(path, tmp_path / "out").jobs()
