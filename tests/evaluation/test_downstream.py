import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from cocomix.evaluation import Run
from cocomix.evaluation.downstream import (
    PAPER_TASKS,
    TASKS_FOLDER,
    Downstream,
    evaluate_tasks,
    read_downstream,
)
from cocomix.runtime.errors import CoCoMixError
from tests.command_line import Cli
from tests.evaluation.task_rows import ROWS, write_rows
from tests.workshop import BLOCK, Workshop

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

BENCHMARKS = Path(os.environ.get("COCOMIX_BENCHMARKS", Path(__file__).parents[3] / "shared" / "benchmarks"))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("tasks") / "rows")


def on_rows(name: str, rows: Path, folder: Path, *, ours: bool):
    """The task of our file or of the harness's own, both with their rows from one local file."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    (theirs,) = [
        file
        for file in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")
        if f"\ntask: {name}\n" in "\n" + file.read_text(encoding="utf-8")
    ]
    changes = {"dataset_path": "json", "dataset_name": None, "test_split": "test", "training_split": None}
    changes |= {"validation_split": None, "dataset_kwargs": {"data_files": {"test": str(rows / f"{name}.jsonl")}}}
    file = folder / f"{name}_{ours}.yaml"
    file.write_text(yaml.safe_dump({"include": str(TASKS_FOLDER / f"{name}.yaml" if ours else theirs), **changes}))
    (task,) = TaskManager(include_defaults=False).load([str(file)])["tasks"].values()
    return task


@pytest.mark.parametrize("name", PAPER_TASKS)
def test_our_task_files_ask_what_the_harness_asks(name: str, rows: Path, tmp_path: Path) -> None:
    own, theirs = (on_rows(name, rows, tmp_path, ours=ours) for ours in (True, False))
    for task in (own, theirs):
        task.build_all_requests(limit=None, rank=0, world_size=1)
    assert [request.args for request in own.instances] == [request.args for request in theirs.instances]
    assert len(own.instances) >= len(ROWS[name])
    assert own.aggregation().keys() == theirs.aggregation().keys()
    assert own.higher_is_better() == theirs.higher_is_better()
    assert own.OUTPUT_TYPE == theirs.OUTPUT_TYPE
    assert PAPER_TASKS[name].metric in own.aggregation()


def log_likelihood(model, tokenizer, prompt: str, ending: str) -> float:
    """The naive form: one text, one forward pass, the ending's tokens summed; what is too long is cut on both sides."""
    context, size = tokenizer(prompt).input_ids, model.config.max_position_embeddings
    target = tokenizer(prompt + ending).input_ids[len(context) :][:size]
    shown = (context + target)[-(size + 1) :]
    with torch.no_grad():
        logits = model(torch.tensor([shown[:-1]])).logits[0].float()
    return -float(F.cross_entropy(logits[-len(target) :], torch.tensor(target), reduction="sum"))


@pytest.mark.parametrize("kind", ["ntp_run", "cocomix_run"])
def test_scores_are_those_of_one_text_at_a_time(kind: str, workshop: Workshop, rows: Path, tmp_path: Path) -> None:
    run = Run.open(getattr(workshop, kind))
    model, tokenizer = run.model(), run.tokenizer()
    found = evaluate_tasks(run, ["piqa", "lambada_openai"], device=CPU, task_data=rows, batch_size=3)
    hits = norm_hits = 0
    for row in ROWS["piqa"]:
        endings = [" " + row["sol1"], " " + row["sol2"]]
        scores = [log_likelihood(model, tokenizer, f"Question: {row['goal']}\nAnswer:", ending) for ending in endings]
        hits += scores.index(max(scores)) == row["label"]
        norm = [score / len(ending[1:]) for score, ending in zip(scores, endings, strict=True)]
        norm_hits += norm.index(max(norm)) == row["label"]
    assert found.tasks["piqa"].metrics["acc"] == hits / 2
    assert found.tasks["piqa"].metrics["acc_norm"] == norm_hits / 2
    words = [row["text"].rpartition(" ") for row in ROWS["lambada_openai"]]
    losses = [-log_likelihood(model, tokenizer, before, " " + last) for before, _, last in words]
    assert found.tasks["lambada_openai"].metrics["perplexity"] == pytest.approx(
        torch.tensor(losses).mean().exp().item(), rel=1e-4
    )


def test_everything_that_is_cut_is_counted(workshop: Workshop, rows: Path, tmp_path: Path) -> None:
    from cocomix.evaluation.harness import CountingModel

    run = Run.open(workshop.ntp_run)
    model = CountingModel(run.model(), run.tokenizer(), batch_size=2, dtype=torch.float32)
    short, long, endless = ([1] * 3, [2] * 2), ([1] * BLOCK, [2] * 2), ([1], [2] * (BLOCK + 5))
    with torch.no_grad():
        scores = model._loglikelihood_tokens([(("", ""), *pair) for pair in (short, long, endless, short)])
    assert (model.requests, model.truncated, model.endings_cut) == (4, 2, 1)
    assert scores[0] == scores[3]
    assert len({score for score, _ in scores}) == 3


@pytest.mark.usefixtures("progress_at_once")
def test_seven_tasks_from_the_command_line(workshop: Workshop, rows: Path, cli: Cli) -> None:
    result = cli("eval", workshop.cocomix_run, "--tasks", "paper", "--task-data", rows, "--json")
    found = Downstream.model_validate(json.loads(result.out))
    assert "scoring: 0 of 4 requests" in result.err
    assert found == read_downstream(workshop.cocomix_run)
    assert found.tasks.keys() == PAPER_TASKS.keys()
    assert (found.conditions.context, found.conditions.dtype) == (BLOCK, "float32")
    assert all(task.truncated > 0 for name, task in found.tasks.items() if PAPER_TASKS[name].kind == "accuracy")
    printed = cli("eval", workshop.cocomix_run, "--tasks", "piqa", "--task-data", rows, "--batch-size", 3).out
    assert "4 of 4" in printed
    assert f"{found.tasks['piqa'].metrics['acc']:.4f}" in printed
    again = read_downstream(workshop.cocomix_run)
    assert again.tasks.keys() == PAPER_TASKS.keys()  # another batch size keeps them
    assert (again.tasks["piqa"].batch_size, again.tasks["arc_easy"].batch_size) == (3, 8)
    arguments = ("--tasks", "piqa", "--task-data", rows, "--limit", 1, "--json")
    alone = json.loads(cli("eval", workshop.cocomix_run, *arguments).out)
    assert list(alone["tasks"]) == ["piqa"]
    assert read_downstream(workshop.cocomix_run) == again  # a look at a few rows does not take its place
    for file in workshop.cocomix_run.glob("evaluations/tasks-*/downstream.json"):
        file.unlink()


@pytest.mark.parametrize("aggregated", [True, False])
def test_a_group_of_tasks(
    aggregated: bool, workshop: Workshop, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import tasks as harness_tasks

    for name in ("piqa", "arc_easy"):
        files = {"data_files": {"test": str(rows / f"{name}.jsonl")}}
        values = {"include": str(TASKS_FOLDER / f"{name}.yaml"), "task": f"mine_{name}", "dataset_kwargs": files}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    group = {"group": "pair", "task": ["mine_piqa", "mine_arc_easy"]}
    metric = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    group |= {"aggregate_metric_list": [metric]} if aggregated else {}
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(group))
    manager = harness_tasks.TaskManager(include_defaults=False, include_path=str(tmp_path))
    monkeypatch.setattr(harness_tasks, "TaskManager", lambda **_: manager)
    run = Run.open(shutil.copytree(workshop.ntp_run, tmp_path / "run"))
    found = evaluate_tasks(run, ["pair"], device=CPU).tasks["pair"]
    assert found.parts.keys() == {"mine_piqa", "mine_arc_easy"}
    sizes = {f"mine_{name}": len(ROWS[name]) for name in ("piqa", "arc_easy")}
    assert found.examples == sum(sizes.values())
    mean = sum(found.parts[name]["acc"] * count for name, count in sizes.items()) / found.examples
    assert found.metrics.get("acc") == (pytest.approx(mean) if aggregated else None)


def test_refusals(workshop: Workshop, rows: Path, tmp_path: Path, cli: Cli) -> None:
    run = Run.open(workshop.ntp_run)
    cli.refuses("eval", run.path, "--tasks", "poetry", "--task-data", rows, says="no task 'poetry' with a local")
    cli.refuses("eval", run.path, "--tasks", "piqa", "--task-data", tmp_path, says="piqa.jsonl does not exist")
    cli.refuses("eval", run.path, "--task-data", rows, says="--tasks")
    cli.refuses("eval", run.path, "--tasks", "piqa", "--task-data", rows, "--limit", 0, says="limit 0")
    (tmp_path / "piqa.jsonl").write_text('{"goal": "no solutions"}\n')
    with pytest.raises(CoCoMixError, match="piqa"):
        evaluate_tasks(run, ["piqa"], device=CPU, task_data=tmp_path)
    damaged = run.path / "evaluations" / "tasks-x" / "downstream.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{}")
    with pytest.raises(CoCoMixError, match=r"downstream\.json.*conditions"):
        read_downstream(run.path)
    shutil.rmtree(damaged.parent)


def test_a_hub_task_needs_the_hub(workshop: Workshop, cli: Cli) -> None:
    if not os.environ.get("HF_HUB_OFFLINE"):
        pytest.skip("would download from the hub")
    cli.refuses("eval", workshop.ntp_run, "--tasks", "piqa", says="the task piqa cannot be run with data from the Hug")


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no local benchmarks; name their folder in COCOMIX_BENCHMARKS")
@pytest.mark.parametrize("name", PAPER_TASKS)
def test_local_benchmarks_can_be_read(name: str, workshop: Workshop) -> None:
    found = evaluate_tasks(Run.open(workshop.ntp_run), [name], device=CPU, task_data=BENCHMARKS, limit=2)
    assert found.tasks[name].examples == 2
    found.conditions.file(workshop.ntp_run).unlink()


HARNESS_ALONE = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
assert "cocomix" not in sys.modules
task, arguments = sys.argv[1:]
manager = TaskManager(include_defaults=False)
found = simple_evaluate("hf", model_args=arguments, tasks=[task], task_manager=manager, device="cpu", batch_size=2)
print(json.dumps(found["results"]["local_lambada_openai"]["perplexity,none"]))
"""


def test_the_harness_alone_runs_a_run_folder(workshop: Workshop, rows: Path) -> None:
    """As `lm_eval --model hf` does: a process that does not import cocomix, on a task file of ours."""
    arguments = f"pretrained={workshop.cocomix_run},trust_remote_code=True,max_length={BLOCK}"
    command = [sys.executable, "-c", HARNESS_ALONE, str(TASKS_FOLDER / "lambada_openai.yaml"), arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=rows, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    run = Run.open(workshop.cocomix_run)
    ours = evaluate_tasks(run, ["lambada_openai"], device=CPU, task_data=rows, batch_size=2)
    assert json.loads(found.stdout.splitlines()[-1]) == pytest.approx(
        ours.tasks["lambada_openai"].metrics["perplexity"], rel=1e-4
    )
    ours.conditions.file(run.path).unlink()
