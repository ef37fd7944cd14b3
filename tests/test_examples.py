"""The examples run as a reader would run them, on a toy run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from transformers import AutoModelForCausalLM

import cocomix.model  # noqa: F401  # its model type
from cocomix.artifacts import read_json
from tests.workshop import Workshop

EXAMPLES = Path(__file__).parents[1] / "examples"


def execute(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **environment: object) -> list[str]:
    """What each cell of code prints, run in an empty folder."""
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    for variable, value in environment.items():
        monkeypatch.setenv(variable, str(value))
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")  # outputs are stored
    here = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=here).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(out.text for out in cell if out.get("name") == "stdout") for cell in outputs]


@pytest.mark.slow
def test_the_quickstart_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    printed = execute("quickstart.ipynb", monkeypatch, tmp_path, COCOMIX_STEPS=4, HF_HUB_OFFLINE=1)
    losses = [float(line.split()[1]) for line in printed[-2].splitlines()]
    assert len(losses) == 2
    assert all(6 < loss < 9 for loss in losses)  # after four steps
    assert "(" in printed[-1]  # names of concepts that the new student predicts


@pytest.mark.slow
@pytest.mark.parametrize("shipped", [True, False])
def test_the_steering_notebook_runs(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shipped: bool
) -> None:
    named = {}
    if not shipped:  # a copy: its atlas is made beside it
        shutil.copytree(workshop.cocomix_run, tmp_path / "run")
        named = {"COCOMIX_RUN": tmp_path / "run", "COCOMIX_PROMPT": "list of"}
    printed = execute("steering.ipynb", monkeypatch, tmp_path, **named)
    assert all(printed[1:])  # every cell after the imports says something
    assert printed[4].count("This class" if shipped else "list of") == 3
    own, others = map(float, re.findall(r"([\d.]+)%", printed[-1].splitlines()[-1]))
    assert own > 2 * others or not shipped


def run(script: str, *arguments: object) -> list[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_plain_loop_learns_and_its_model_loads(workshop: Workshop, tmp_path: Path) -> None:
    assert len((EXAMPLES / "plain_loop.py").read_text().splitlines()) < 75
    arguments = (workshop.data, workshop.labels, tmp_path / "run", "--steps", 60, "--width", 32)
    first, last = (float(line.split()[2]) for line in run("plain_loop.py", *arguments))
    assert last < first - 0.5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert model.config.backbone.model_type == "llama"


def test_a_labeller_from_outside(workshop: Workshop, tmp_path: Path) -> None:
    assert "nats" in run("own_labeller.py", workshop.data, tmp_path / "labels")[-1]
    assert read_json(tmp_path / "labels" / "manifest.json")["labels"]["kind"] == "repetition"


def test_a_mixing_from_outside() -> None:
    losses = [float(line.split()[-1]) for line in run("own_mixing.py") if line.startswith("step")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("arm", ["ntp", "cocomix"])
def test_an_objective_from_outside(workshop: Workshop, tmp_path: Path, arm: str) -> None:
    recipe = workshop.recipe_file(tmp_path / "r.yaml", arm)
    run("own_objective.py", recipe, tmp_path / "run", "tokens=256")
    assert "hidden_size" in read_json(tmp_path / "run" / "manifest.json")["arm"]


@pytest.mark.slow
def test_a_corpus_with_a_teacher_of_another_tokenizer(workshop: Workshop, tmp_path: Path) -> None:
    sizes = ("--vocabulary", 300, "--concepts", 48, "--block-size", 16, "--width", 16, "--tokens", 20_000)
    teacher = ("--teacher", workshop.teacher, "--layer", 1)
    printed = run("own_corpus.py", workshop.corpus, *teacher, *sizes, "--output", tmp_path)
    assert [line.split(":")[0].strip() for line in printed[-3:]] == ["ntp", "distilled", "cocomix"]
    assert (tmp_path / "report" / "report.html").is_file()
    made = read_json(tmp_path / "labels" / "manifest.json")
    assert made["labeller"]["student_tokenizer"] != made["labeller"]["teacher_tokenizer"]
    assert made["num_concepts"] == 48
