"""Two processes on one machine train as one does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from cocomix.artifacts import partial_path
from cocomix.runtime.ignore import IGNORE
from cocomix.runtime.stopping import STATUS
from cocomix.training import train
from tests.many.launches import ACCELERATE, TORCHRUN, curve, difference, launched, rows
from tests.model.factories import student, tokens
from tests.workshop import BLOCK, Workshop


@pytest.mark.parametrize(
    ("mixing", "settings", "labelled"),
    [
        ("interleave", {}, True),
        ("interleave", {}, False),
        ("residual", {}, True),
        ("add", {}, True),
        ("none", {}, True),
        ("pause", {}, False),
        ("plain", {"bigram_rows": 9}, False),
        ("add", {"bigram_rows": 9}, True),
        ("loop", {}, False),
        ("ponder", {"insert_layer": 0}, False),
        ("interleave", {"prediction": "hidden", "teacher_hidden_size": 8}, False),
    ],
)
def test_every_weight_takes_part(mixing: str, settings: dict[str, Any], labelled: bool) -> None:
    """Also on a process whose blocks have no target: DDP waits for every gradient (`ddp_find_unused_parameters`)."""
    model = student("gpt2", mixing=mixing, **settings).train()
    ids = tokens(2, 6)
    inputs: dict[str, Any] = {"labels": torch.full_like(ids, IGNORE), "num_items_in_batch": 5}
    if labelled:
        inputs |= {"concept_labels": torch.full((2, 6, 3), IGNORE), "num_concept_items_in_batch": 5}
    if "teacher_hidden_size" in settings:
        inputs["hidden_targets"] = torch.zeros(2, 6, 8)
    loss = model(input_ids=ids, output_logits=False, use_cache=False, **inputs).loss
    loss.backward()
    assert loss == 0.0
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.slow
@pytest.mark.parametrize(("taught", "launcher"), [(False, TORCHRUN), (True, ACCELERATE)], ids=["ddp", "fsdp-taught"])
def test_two_processes_are_one(workshop: Workshop, tmp_path: Path, taught: bool, launcher: tuple[str, ...]) -> None:
    # An epoch is 289 blocks: its tenth step has one block, so that one of two processes has none.
    training = {"optim": "sgd", "save_steps": 6, "eval_steps": 6, "per_device_train_batch_size": 32}
    changes = {"name": "run", "tokens": (289 + 2 * 32) * BLOCK, "training": training}
    if taught:  # every process runs the teacher on its own rows, for both of its lessons
        changes |= {"teacher": {"model": str(workshop.teacher), "layer": 1}, "distillation": {"weight": 0.5}}
        changes |= {"model": {"prediction": "hidden"}}
    one = train(workshop.recipe("cocomix", **changes), tmp_path / "one")
    changes["training"]["per_device_train_batch_size"] = 16
    recipe = workshop.recipe_file(tmp_path / "two.yaml", "cocomix", **changes)
    two = tmp_path / "two"
    done = launched([0, "train", recipe, "--output", two], 2, launcher=launcher, module="tests.many.child")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "two.yaml"}
    assert done.stderr.count("validation loss") == 3  # only the first process speaks
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert len(list((two / "tensorboard").iterdir())) == 1
    weights, expected = (load_file(run / "model.safetensors") for run in (two, one))
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    for row, twin in zip(rows(two), rows(one), strict=True):
        for name in row.keys() - {"seconds", "tokens_per_second"}:
            assert row[name] == pytest.approx(twin[name], rel=1e-4), name


@pytest.mark.slow
def test_two_shards_stop_and_go_on(workshop: Workshop, tmp_path: Path) -> None:
    """A checkpoint of two processes holds one model, and the curve is that of one process."""
    training = {"save_steps": 100, "eval_steps": 100, "logging_steps": 1, "per_device_train_batch_size": 16}
    changes = {"name": "run", "tokens": 12 * 16 * BLOCK, "training": training}
    one = train(workshop.recipe("cocomix", **changes), tmp_path / "one")
    training |= {"fsdp": True, "per_device_train_batch_size": 8}
    two, output = workshop.recipe_file(tmp_path / "two.yaml", "cocomix", **changes), tmp_path / "two"
    done = launched([7, "train", two, "--output", output, "--json"], 2, module="tests.many.child", status=1)
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 1
    assert "stopped by SIGTERM; the checkpoint of step 7 is kept" in done.stderr
    assert f"exitcode  : {STATUS}" in done.stderr
    checkpoint = partial_path(output) / "checkpoints" / "checkpoint-7"
    whole = load_file(checkpoint / "model.safetensors")

    training |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    two = workshop.recipe_file(tmp_path / "two.yaml", "cocomix", **changes)
    launched([0, "train", two, "--output", output], 2, module="tests.many.child")
    assert difference(output, one) < 1e-4
    assert len(curve(output, "concept_loss")) == 12
    weights = load_file(output / "model.safetensors")
    assert {name: weight.shape for name, weight in whole.items()} == {
        name: weight.shape for name, weight in weights.items()
    }


@pytest.mark.slow
def test_a_launch_fails_in_one_sentence(workshop: Workshop, tmp_path: Path) -> None:
    """Here only the first process knows the reason; the other one finds itself alone."""
    recipe = workshop.recipe_file(tmp_path / "r.yaml", "ntp")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    done = launched(["train", recipe, "--output", tmp_path / "run"], 2, status=1)
    assert done.stderr.count("error: ") == 1
    assert "already exists; remove it or choose another --output" in done.stderr
    assert "[rank" not in done.stderr  # as PyTorch marks a process's traceback
