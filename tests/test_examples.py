"""The examples run as a reader would run them, on a toy run."""

import os
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


@pytest.mark.slow
def test_the_steering_notebook_runs(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COCOMIX_RUN", str(workshop.cocomix_run))
    monkeypatch.setenv("COCOMIX_PROMPT", "list of")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(EXAMPLES / "steering.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = ["".join(out.get("text", "") for out in cell.outputs) for cell in notebook.cells if "outputs" in cell]
    assert len(printed) == 7
    assert all(printed[1:])  # every cell after the imports says something
    assert printed[4].count("list of") == 3
    assert "correlation" in printed[6]


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
