"""Two processes on one machine train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from cocomix.training import train
from tests.workshop import BLOCK, Workshop


@pytest.mark.slow
@pytest.mark.parametrize("taught", [False, True], ids=["labelled", "taught"])
def test_two_processes_are_one(workshop: Workshop, tmp_path: Path, taught: bool) -> None:
    # An epoch is 289 blocks: its tenth step has one block, so that one of two processes has none.
    training = {"optim": "sgd", "save_steps": 6, "eval_steps": 6, "per_device_train_batch_size": 32}
    changes = {"name": "run", "tokens": (289 + 2 * 32) * BLOCK, "training": training}
    if taught:  # every process runs the teacher on its own rows, for both of its lessons
        changes |= {"teacher": {"model": str(workshop.teacher), "layer": 1}, "distillation": {"weight": 0.5}}
        changes |= {"model": {"prediction": "hidden"}}
    one = train(workshop.recipe("cocomix", **changes), tmp_path / "one")
    changes["training"]["per_device_train_batch_size"] = 16
    recipe = workshop.recipe_file(tmp_path / "two.yaml", "cocomix", **changes)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "cocomix", "train", str(recipe), "--output", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "two.yaml"}
    assert done.stderr.count("validation loss") == 3  # only the first process speaks
    two = tmp_path / "two"
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert len(list((two / "tensorboard").iterdir())) == 1
    weights, expected = (load_file(run / "model.safetensors") for run in (two, one))
    for name, value in weights.items():
        assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    rows, twins = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (two, one)
    )
    for row, twin in zip(rows, twins, strict=True):
        for name in row.keys() - {"seconds", "tokens_per_second"}:
            assert row[name] == pytest.approx(twin[name], rel=1e-4), name
