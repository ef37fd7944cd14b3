"""A plan of small arms: once through, extended, with an arm that fails; and the shipped plan at its smallest."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cocomix.artifacts import AlreadyExists, BeingWritten, read_json, write_json
from cocomix.concepts import ActivationConfig
from cocomix.evaluation import Run, evaluations_of
from cocomix.evaluation.alike import ARM_FIELDS, refuse_unlike_recipes
from cocomix.evaluation.downstream import PAPER_TASKS, Downstream, HarnessConditions
from cocomix.evaluation.teacher_flops import teacher_flops
from cocomix.experiments import load_plan, run_sweep
from cocomix.experiments.runner import TRIED, final_loss
from cocomix.experiments.sweep_plan import LoadedPlan, label_folder
from cocomix.labelling import Labels, TeacherProbabilities
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.packaged import recipes_folder
from cocomix.training import describe_plan, plan_run
from cocomix.training.recipe import load_recipe
from tests.command_line import Cli
from tests.workshop import BLOCK, VOCAB, Workshop, of_an_earlier_algorithm, write_corpus

PLANS = sorted(recipes_folder().glob("paper_*.yaml"))


def write_plan(folder: Path, workshop: Workshop, **changes: Any) -> Path:
    """NTP and CoCoMix over two seeds, on the workshop's data, teacher and dictionary."""
    folder.mkdir(exist_ok=True)
    workshop.recipe_file(folder / "ntp.yaml", "ntp", tokens=4 * 8 * BLOCK)
    workshop.recipe_file(folder / "cocomix.yaml", "cocomix", tokens=4 * 8 * BLOCK)
    plan = {
        "baseline": "ntp",
        "seeds": [0, 1],
        "arms": {"ntp": "ntp.yaml", "mixed": "cocomix.yaml"},
        "teacher": {"layer": 1, "model": str(workshop.teacher)},
        "dictionary": {"path": str(workshop.dictionary)},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump({**plan, **changes}, sort_keys=False), encoding="utf-8")
    return folder / "plan.yaml"


def manifests(output: Path) -> dict[str, int]:
    return {
        str(file.parent.relative_to(output)): file.stat().st_mtime_ns for file in output.glob("runs/*/*/manifest.json")
    }


@pytest.mark.usefixtures("progress_at_once")
def test_a_plan_runs_once_and_goes_on_where_it_was(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    plan, output = write_plan(tmp_path / "plans", workshop), tmp_path / "out"
    done = cli("sweep", plan, "--output", output, "--json")
    assert "sweep: 0 of 4 runs" in done.err
    result = json.loads(done.out)
    assert result["complete"]
    assert [(run["arm"], run["seed"], run["status"]) for run in result["runs"]] == [
        ("ntp", 0, "finished"), ("mixed", 0, "finished"), ("ntp", 1, "finished"), ("mixed", 1, "finished"),
    ]  # fmt: skip
    assert (output / "report" / "report.html").is_file()
    mixed = result["comparison"]["arms"][1]
    assert (mixed["arm"], mixed["seeds"], mixed["documents"] > 6) == ("mixed", [0, 1], True)
    assert mixed["difference_low"] <= mixed["difference"] <= mixed["difference_high"]
    assert mixed["teacher_flops"] > 0
    assert result["comparison"]["references"].keys() == {"unigram", "bigram", "trigram", "fourgram"}
    run = Run.open(output / "runs" / "mixed" / "seed1")
    assert (run.manifest.name, run.manifest.seed, run.manifest.labels.path) == (
        "mixed", 1, str(output / "labels" / "default"),
    )  # fmt: skip
    assert len(evaluations_of(run)) == 1
    before = manifests(output)

    # A third arm and nothing else is new; its labels are its own.
    arms = {"ntp": "ntp.yaml", "mixed": "cocomix.yaml"}
    arms["active"] = {"base": "cocomix.yaml", "seeds": [0], "labels": {"kind": "activation"}}
    write_plan(tmp_path / "plans", workshop, arms=arms)
    again = cli("sweep", plan, "--output", output)
    assert "labels: kind activation" in again.out
    assert "sweep: 4 of 5 runs (80%)" in again.err  # and no rate: those four were there
    assert " runs/" not in again.err.split("sweep: 4 of 5")[1].splitlines()[0]
    after = manifests(output)
    assert after.keys() - before.keys() == {"runs/active/seed0"}
    assert all(after[name] == time for name, time in before.items())
    own = Labels.open(label_folder(output, ActivationConfig())).manifest
    assert own.labels["kind"] == "activation"

    # An arm whose recipe changed is not taken for the one that was trained.
    arms["mixed"] = {"base": "cocomix.yaml", "model": {"concept_loss_weight": 0.5}}
    write_plan(tmp_path / "plans", workshop, arms=arms)
    cli.refuses("sweep", plan, "-o", output, says="was trained by another recipe than the plan's 'mixed'")
    write_plan(tmp_path / "plans", workshop, teacher={"layer": 0, "model": str(workshop.teacher)}, seeds=[5])
    cli.refuses("sweep", plan, "-o", output, says="holds a sweep with another teacher")


_KILLED = """
import os, signal, sys
from pathlib import Path
import cocomix.experiments.sweep_plan as sweep_plan
import cocomix.experiments.runner as runner
from cocomix.experiments import load_plan

train, trained = runner.train, []
def train_once(recipe, folder):
    if trained:
        os.kill(os.getpid(), signal.SIGKILL)
    trained.append(train(recipe, folder))

runner.train = train_once
sweep_plan.seconds_per_token = lambda recipe, seconds: {"ntp": 1.0, "mixed": 3.0}[recipe.name]
runner.run_sweep(load_plan(Path(sys.argv[1]), Path(sys.argv[2])), budget=float(sys.argv[3]))
"""


def test_a_budget_shortens_all_runs_alike_and_a_killed_sweep_keeps_to_it(
    workshop: Workshop, tmp_path: Path, cli: Cli
) -> None:
    plan, output, tokens = write_plan(tmp_path / "plans", workshop), tmp_path / "out", 4 * 8 * BLOCK
    needed = 2 * (1.0 + 3.0) * tokens / 0.75  # seconds, of all four runs, evaluations and report
    command = [sys.executable, "-c", _KILLED, str(plan), str(output), str(needed / 2)]
    killed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    share = read_json(output / "budget.json")["share"]
    assert share == pytest.approx(0.5, abs=0.02)
    cli.refuses("sweep", plan, "--output", output, "--budget", "1h", says="3600 s")
    done = json.loads(cli("sweep", plan, "--output", output, "--json").out)
    assert done["complete"]
    for run in done["runs"]:
        manifest = Run.open(output / "runs" / run["arm"] / f"seed{run['seed']}").manifest
        assert manifest.tokens == pytest.approx(share * tokens, abs=8 * BLOCK)


def test_no_length_of_time_is_refused(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    for given in ("10", "0s", "soon"):
        cli("sweep", write_plan(tmp_path / "plans", workshop), "--budget", given, status=2)


def test_what_is_needed_for_a_while_is_made_for_that_part_alone(workshop: Workshop, tmp_path: Path) -> None:
    """Weights end within one of four steps of 8 blocks; an arm that needs all labels or probabilities has its own."""
    arms: dict[str, Any] = {"ntp": "ntp.yaml", "whole": "cocomix.yaml"}
    arms["short"] = {"base": "cocomix.yaml", "model": {"concept_loss_weight": {"shape": "linear", "until": 0.25}}}
    distilled = {"targets": "probabilities", "weight": 1.0}
    arms["distilled"] = {"base": "ntp.yaml", "distillation": distilled}
    arms["both"] = arms["short"] | {"distillation": distilled | {"weight": {"shape": "stop", "until": 0.25}}}
    plan = write_plan(tmp_path / "plans", workshop, arms=arms, seeds=[0], common={"first_blocks": 8})
    result = run_sweep(load_plan(plan, tmp_path / "out"))
    assert not result.missing
    runs = {job.arm: Run.open(job.folder) for job in result.jobs}
    stored = {arm: Labels.open(runs[arm].manifest.labels.path).manifest for arm in ("whole", "short", "both")}
    blocks = {
        path.name: TeacherProbabilities.open(path).manifest.blocks("train") for path in (tmp_path / "out").glob("prob*")
    }
    assert stored["short"].blocks("train") == stored["both"].blocks("train") == 8 < stored["whole"].blocks("train")
    assert blocks == {"probabilities": stored["whole"].blocks("train"), "probabilities-8": 8}
    assert (teacher_flops(runs["short"]) or 0) < (teacher_flops(runs["whole"]) or 0)
    of_an_earlier_algorithm(tmp_path / "out" / "probabilities")
    assert not run_sweep(load_plan(plan, tmp_path / "out")).missing
    shutil.rmtree(runs["distilled"].path)
    with pytest.raises(AlreadyExists, match="algorithm"):
        run_sweep(load_plan(plan, tmp_path / "out"))


def test_a_failing_arm_does_not_stop_the_others(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    arms = {
        "ntp": "ntp.yaml",
        "broken": {"base": "cocomix.yaml", "model": {"insert_layer": 99}},
        "mixed": "cocomix.yaml",
    }
    plan, output = write_plan(tmp_path / "plans", workshop, arms=arms, seeds=[0]), tmp_path / "out"
    result = cli("sweep", plan, "-o", output, "--json", status=1)
    assert "1 of 3 runs are missing (broken seed 0), so there is no report" in result.err
    values = json.loads(result.out)
    assert (values["complete"], values["comparison"], values["report"]) == (False, None, None)
    states = {run["arm"]: (run["status"], run["error"]) for run in values["runs"]}
    assert states["mixed"] == states["ntp"] == ("finished", None)
    assert "insert_layer" in states["broken"][1]
    assert not (output / "report").exists()


def test_a_run_that_cannot_be_measured_is_missing(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Run, **settings: Any) -> None:
        if run.manifest.name == "mixed":
            raise CoCoMixError("no")

    monkeypatch.setattr("cocomix.experiments.runner.evaluate_run", fail)
    result = run_sweep(load_plan(write_plan(tmp_path / "plans", workshop, seeds=[0]), tmp_path / "out"))
    assert (result.missing, result.comparison) == (["mixed seed 0"], None)
    assert [run["status"] for run in result.to_json()["runs"]] == ["finished", "failed"]


def test_learning_rates_are_chosen_on_one_grid(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    """The arms' own grids too; a rate at which training fails is not chosen; a second command finds all done."""
    arms = {
        "ntp": {"base": "ntp.yaml", "learning_rates": [1e-9, 1e-2, 1e-5]},
        "mixed": {"base": "cocomix.yaml", "training": {"optim": "muon"}},
    }
    tune = {"learning_rates": [1e-2, 1e20], "tokens": 2 * 8 * BLOCK, "seed": 7}
    plan = write_plan(tmp_path / "plans", workshop, arms=arms, tune=tune, seeds=[0])
    cli.refuses("sweep", plan, "-o", tmp_path / "out", says="training.optim (adamw_torch_fused and muon)")
    assert not (tmp_path / "out").exists()
    plan = write_plan(tmp_path / "plans", workshop, arms=arms, tune=tune, seeds=[0], vary=["training.optim"])
    output = tmp_path / "out"
    done = cli("sweep", plan, "-o", output, "--json")
    result = json.loads(done.out)
    rates = result["learning_rates"]
    assert rates == read_json(output / TRIED)
    assert [(arm, noted["chosen"]) for arm, noted in rates.items()] == [("ntp", 1e-2), ("mixed", 1e-2)]
    assert list(rates["ntp"]["losses"]) == ["1e-09", "1e-05", "0.01"]
    assert rates["ntp"]["losses"]["0.01"] < rates["ntp"]["losses"]["1e-05"] < rates["ntp"]["losses"]["1e-09"]
    assert rates["mixed"]["losses"]["1e+20"] is None
    assert "ntp: the best learning rate, 0.01, is the largest tried" in done.err
    assert [row["arm"] for row in result["comparison"]["arms"]] == ["ntp", "mixed"]
    for arm, optimizer in (("ntp", None), ("mixed", "muon")):
        training = load_recipe(output / "runs" / arm / "seed0" / "recipe.yaml").training
        assert (training["learning_rate"], training.get("optim"), training["seed"]) == (1e-2, optimizer, 0)
    tried = Run.open(output / "tuning" / "ntp" / "0.01").manifest
    assert (tried.tokens, tried.seed) == (2 * 8 * BLOCK, 7)
    before = manifests(output)
    assert json.loads(cli("sweep", plan, "-o", output, "--json").out)["learning_rates"] == rates
    assert manifests(output) == before
    # Without a seed of their own, tries are of the plan's first one; a folder goes on with those it has.
    del tune["seed"]
    again = write_plan(tmp_path / "plans", workshop, arms=arms, tune=tune, seeds=[3, 0], vary=["training.optim"])
    assert {job.seed for job in load_plan(again, tmp_path / "new").tries()} == {3}
    assert {job.seed for job in load_plan(again, output).tries()} == {7}


def test_a_wider_grid_does_not_take_runs_of_another_rate_for_its_own(workshop: Workshop, tmp_path: Path) -> None:
    def widened(*rates: float) -> LoadedPlan:
        tune = {"learning_rates": [*rates], "tokens": 2 * 8 * BLOCK}
        return load_plan(write_plan(tmp_path / "plans", workshop, seeds=[0], tune=tune), tmp_path / "out")

    assert run_sweep(widened(1e-5, 1e-4)).comparison is not None
    with pytest.raises(CoCoMixError, match=r"runs/ntp/seed0.*another recipe"):
        run_sweep(widened(1e-5, 1e-4, 1e-2))
    assert read_json(tmp_path / "out" / TRIED)["ntp"]["chosen"] == 1e-2


def test_a_task_that_a_plan_names_later_is_measured_on_the_runs_that_are_there(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def measured(run: Run, tasks: list[str], **_: Any) -> None:
        asked.append(tasks)
        conditions = HarnessConditions(harness="0", context=BLOCK, dtype="float32", limit=None)
        counts = {"source": "hub", "examples": 9, "requests": 9, "truncated": 0, "endings_cut": 0, "batch_size": 1}
        task = {**counts, "metrics": {PAPER_TASKS[tasks[0]].metric: 0.5}}
        file = conditions.file(run.path)
        known = read_json(file)["tasks"] if file.exists() else {}
        found = Downstream.model_validate({"conditions": conditions, "tasks": {**known, tasks[0]: task}})
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found.model_dump())

    monkeypatch.setattr("cocomix.experiments.runner.evaluate_tasks", measured)
    monkeypatch.setattr("cocomix.experiments.runner.require_extra", lambda *_, **__: None)
    for tasks in (["piqa"], ["piqa", "arc_easy"], ["arc_easy"]):
        plan = write_plan(tmp_path / "plans", workshop, seeds=[0], tasks=tasks)
        found = run_sweep(load_plan(plan, tmp_path / "out")).comparison
        assert found is not None
    assert asked == [["piqa"], ["piqa"], ["arc_easy"], ["arc_easy"]]
    assert found.downstream is not None
    assert [name.partition(",")[0] for name in found.downstream] == ["validation", "piqa", "arc_easy"]


def test_a_shared_part_may_be_mended_until_something_is_made_of_it(workshop: Workshop, tmp_path: Path) -> None:
    """A wrong name of the teacher does not cost the data that were prepared before it was read."""
    prepare = {"sources": [str(workshop.corpus)], "vocab_size": None, "tokenizer": str(workshop.data / "tokenizer")}
    shape = {"block_size": BLOCK, "validation_fraction": 0.2}

    def sweep(**changes: Any) -> Any:
        plan = write_plan(tmp_path / "plans", workshop, seeds=[0], prepare={**prepare, **shape}, **changes)
        return run_sweep(load_plan(plan, tmp_path / "out"))

    with pytest.raises(CoCoMixError, match="nowhere"):
        sweep(teacher={"layer": 1, "model": str(tmp_path / "nowhere")})
    shape["block_size"] = BLOCK // 2
    with pytest.raises(CoCoMixError, match="another prepare"):
        sweep()
    shape["block_size"] = BLOCK
    assert sweep().comparison is not None


def test_a_second_sweep_in_the_folder_is_refused(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_plan(write_plan(tmp_path / "plans", workshop, seeds=[0]), tmp_path / "out")
    refused = []

    def again(*arguments: Any) -> None:
        with pytest.raises(BeingWritten) as caught:
            run_sweep(loaded)
        refused.append(caught.value.pid)
        raise CoCoMixError("enough")

    monkeypatch.setattr("cocomix.experiments.runner.train", again)
    result = run_sweep(loaded)
    assert refused == [os.getpid()] * 2
    assert set(result.errors.values()) == {"enough"}


@pytest.mark.slow
def test_several_at_once_are_processes_of_the_same_runs(workshop: Workshop, tmp_path: Path) -> None:
    loaded = load_plan(write_plan(tmp_path / "plans", workshop, seeds=[0]), tmp_path / "out")
    first = [final_loss(job) for job in run_sweep(loaded).jobs]
    shutil.rmtree(tmp_path / "out" / "runs" / "mixed")
    again = run_sweep(loaded, workers=2)
    assert [final_loss(job) for job in again.jobs] == pytest.approx(first, rel=1e-5)
    assert len(evaluations_of(Run.open(again.jobs[1].folder))) == 1


@pytest.mark.slow
def test_sigterm_ends_the_processes_of_a_sweep_with_their_checkpoints(workshop: Workshop, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plans", workshop, common={"tokens": 10_000_000, "training": {"save_steps": 10**6}})
    command = [sys.executable, "-m", "cocomix", "sweep", str(plan), "--output", str(tmp_path / "out"), "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sweep:
        logs = "out/runs/*/*.partial/metrics.jsonl"
        while sum("\n" in file.read_text() for file in tmp_path.glob(logs)) < 2:  # each has done steps
            assert sweep.poll() is None
            time.sleep(0.2)
        sweep.terminate()
        assert sweep.wait(timeout=300) == 128 + signal.SIGTERM
    assert len([*tmp_path.glob("out/runs/*/*.partial/checkpoints/checkpoint-*")]) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"baseline": "nobody"}, "baseline 'nobody' is no arm; the arms are ntp, mixed"),
        ({"arms": {"ntp": "ntp.yaml"}}, "a sweep compares arms, and there is one"),
        ({"arms": {"ntp": "gone.yaml", "mixed": "cocomix.yaml"}}, "gone.yaml does not exist"),
        ({"arms": {"ntp": "ntp.yaml", "x": {"base": "ntp.yaml", "colour": "red"}}}, "arm 'x' (from"),
        ({"arms": {"ntp": "ntp.yaml", "x": {"model": {}}}}, "fields with base: RECIPE"),
        ({"arms": {"ntp": "ntp.yaml", "../x": "ntp.yaml"}}, "use letters, digits"),
        ({"seeds": [1, 1]}, "without repetitions"),
        ({"sedes": [1]}, "sedes is not a known field"),
        ({"teacher": {"layer": 1}}, "give either model or recipe"),
    ],
)
def test_plans_that_are_refused(
    changes: dict[str, Any], says: str, workshop: Workshop, tmp_path: Path, cli: Cli
) -> None:
    plan = write_plan(tmp_path / "plans", workshop, **changes)
    cli.refuses("sweep", plan, "-o", tmp_path / "out", says=says)
    assert not (tmp_path / "out").exists()


LABELLED = {"labels": {"kind": "activation", "teacher": {"model": "t", "layer": 1}, "dictionary": {"path": "d"}}}


def test_other_refusals(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    cli.refuses("sweep", tmp_path / "none.yaml", says="does not exist")
    plan = write_plan(tmp_path / "plans", workshop)
    cli.refuses("sweep", plan, "--fast", says="no fast: section")
    cli.refuses("sweep", plan.with_name("ntp.yaml"), says="`cocomix train`")
    made = write_plan(
        tmp_path / "plans", workshop, teacher=None, arms={"ntp": "ntp.yaml", "x": {"base": "cocomix.yaml", **LABELLED}}
    )
    cli.refuses("sweep", made, "-o", tmp_path / "out", says="'x' by dictionary: needs teacher:")
    assert not (tmp_path / "out" / "runs").exists()
    write_plan(tmp_path / "plans", workshop)
    plan.write_text(plan.read_text().replace("  mixed: cocomix.yaml", "  ntp: cocomix.yaml\n  mixed: cocomix.yaml"))
    cli.refuses("sweep", plan, says="the key 'ntp' stands twice")
    plan.write_text("- a list")
    with pytest.raises(CoCoMixError, match="no plan"):
        load_plan(plan)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_shipped_plan_resolves(path: Path, tmp_path: Path) -> None:
    jobs = load_plan(path, tmp_path / "out").jobs()
    arms = {job.arm: job.recipe for job in jobs}
    assert {"ntp", "kd", "cocomix", "labels_activation", "hidden_l2", "mixing_only", "add", "pause"} <= arms.keys()
    shared = {(str(r.data), r.tokens, r.evaluation_blocks, r.training["learning_rate"]) for r in arms.values()}
    assert len(shared) == 1
    fields = {field.partition(".")[0] for field in ARM_FIELDS} - {"model", "training"}
    rest = [recipe.model_dump(mode="json", exclude=fields | {"model"}) for recipe in arms.values()]
    assert all(each == rest[0] for each in rest), "what is not an arm's own is shared"
    assert len({json.dumps(recipe.model_dump(mode="json", exclude={"name"})) for recipe in arms.values()}) == len(arms)
    assert arms["kd"].distillation.weight.value == 0.1


@pytest.mark.parametrize("path", sorted(recipes_folder().glob("plans/*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("fast", [False, True])
def test_every_comparison_of_forms_resolves(path: Path, fast: bool, tmp_path: Path) -> None:
    """A dry run of all arms; a plan that says how long it takes says what its recipes' costs come to."""
    text = path.read_text(encoding="utf-8")
    if fast and "\nfast:" not in text:
        pytest.skip("it has no short form")
    loaded = load_plan(path, tmp_path / "out", fast=fast)
    jobs = loaded.jobs()
    refuse_unlike_recipes({job.arm: job.recipe for job in jobs}, loaded.plan.vary)
    assert loaded.plan.teacher is not None
    labellers = [job.recipe.labels.labeller for job in jobs if job.recipe.labels is not None]
    assert {one.dtype for one in labellers if hasattr(one, "dtype")} <= {loaded.plan.teacher.dtype}
    stated = re.search(r"([\d.]+) hours of one H200", text)
    if stated is not None and not fast:
        costs = [describe_plan(job.recipe, plan_run(job.recipe)) for job in jobs]
        hours = sum(cost["hours on one H200 or H100, estimated"] for cost in costs)
        assert hours == pytest.approx(float(stated[1]), abs=0.05)


@pytest.mark.slow
def test_the_shipped_plan_runs_every_arm(tmp_path: Path, cli: Cli) -> None:
    plan = yaml.safe_load((recipes_folder() / "paper_cpu.yaml").read_text(encoding="utf-8"))
    corpus = write_corpus(tmp_path / "corpus", documents=120)
    for name, arm in plan["arms"].items():
        plan["arms"][name] = str(recipes_folder() / arm)
    plan["teacher"]["recipe"]["base"] = str(recipes_folder() / plan["teacher"]["recipe"]["base"])
    plan["fast"]["prepare"] = {
        "sources": [str(corpus)],
        "vocab_size": VOCAB,
        "block_size": BLOCK,
        "validation_fraction": 0.1,
    }
    plan["fast"]["common"] |= {"tokens": 2 * 4 * BLOCK}
    plan["fast"]["teacher"] = {"recipe": {"tokens": 64 * BLOCK}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    result = json.loads(cli("sweep", tmp_path / "plan.yaml", "--fast", "-o", tmp_path / "out", "--json", "-q").out)
    assert result["complete"]
    rows = {row["arm"]: row for row in result["comparison"]["arms"]}
    assert rows.keys() == plan["arms"].keys()
    assert {row["steps"] for row in rows.values()} == {2}
    assert rows["kd"]["total_flops"] > rows["ntp"]["total_flops"] == rows["ntp"]["flops"]
    assert rows["kd_stored"]["total_flops"] == pytest.approx(rows["kd"]["total_flops"])
    stored, online = rows["kd_stored"], rows["kd"]
    assert online["flops_of_10"] == online["total_flops"], "a teacher that runs beside a student runs beside each"
    spent = stored["flops"] + (stored["total_flops"] - stored["flops"]) / 10
    assert stored["flops_of_10"] == pytest.approx(spent)
    assert read_json(tmp_path / "out" / "shared.json")["teacher"]["layer"] == 1
