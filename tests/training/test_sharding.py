"""Two processes that share one model (accelerate's FSDP2) train as one does: curves, checkpoints, the whole model."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.distributed.tensor import DTensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from cocomix.artifacts import partial_path, read_json, write_json
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from cocomix.training.checkpoints import Checkpoint, check_kind
from tests.many.cpu_shards import allow_cpu_shards
from tests.many.launches import difference, spawned
from tests.model.factories import plain, student
from tests.training.test_resume import Killed, kill_at
from tests.training.test_trainer import Logs, build, spoil, trainer
from tests.workshop import Workshop

SETTINGS: dict[str, Any] = {
    "steps": 4,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tied": ("cocomix", "gpt2", {}),
    "gathered-once": ("cocomix", "llama", {"fsdp_config": {"reshard_after_forward": False}}),
    "recomputed": ("cocomix", "gemma3_text", {"fsdp_config": {"activation_checkpointing": True}}),
    "plain": ("ntp", "llama", {}),
    "muon": ("cocomix", "llama", {"optim": "muon"}),
    "bf16": ("cocomix", "gpt2", {"bf16": True}),
}


def losses(logs: Logs) -> list[dict[str, float]]:
    return [{name: row[name] for name in row if "loss" in name or name == "grad_norm"} for row in logs.rows]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Without the biases of keys: these have no gradient but rounding, of which AdamW makes steps."""
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("c_attn.bias"):
            weights[name].chunk(3)[1].zero_()
    return weights


def sharded(folder: Path) -> None:
    """What each of two processes does: every case is trained, saved, and gone on with from its step 2."""
    allow_cpu_shards()
    for case, (objective, family, settings) in CASES.items():
        output = folder / case / "run"
        settings = {**SETTINGS, "per_device_train_batch_size": 2, "fsdp": True, **settings}
        made, logs = trainer(build(objective, family), output, **settings)
        made.train()
        assert all(isinstance(weight, DTensor) for weight in made.model.parameters())
        made.save_model(str(folder / case / "found"))
        again, _ = trainer(build(objective, family), output, **settings)
        again.train(resume_from_checkpoint=str(output / "checkpoint-2"))
        again.save_model(str(folder / case / "again"))
        if made.args.process_index == 0:
            write_json(folder / case / "losses.json", losses(logs))
    _count_reductions(folder / "counted")
    _skip_a_step(folder / "skipped")


def _count_reductions(folder: Path) -> None:
    """Gradients are reduced once per optimizer step, not once per micro-batch: once for every unit."""
    made, _ = trainer(build("cocomix"), folder, steps=1, gradient_accumulation_steps=4, fsdp=True)
    reduce = _fsdp_param_group.foreach_reduce
    with mock.patch.object(_fsdp_param_group, "foreach_reduce", wraps=reduce) as counted:
        made.train()
    units = sum(isinstance(module, FSDPModule) for module in made.model.modules())
    assert counted.call_count == units - 1  # the embedding and the head tied to it are one unit of two modules


def _skip_a_step(folder: Path) -> None:
    """A step whose gradients are not finite changes nothing."""
    made, logs = trainer(build("ntp"), folder, steps=3, fsdp=True)
    with pytest.raises(CoCoMixError, match="not sharded before training"):
        made.evaluate()
    made.skips_non_finite = True
    spoil(made, {1}, lambda loss: loss * float("nan"))
    made.train()
    assert made.skipped_steps == 1
    assert [isinstance(row.get("grad_norm"), float) for row in logs.rows[:3]] == [True, False, True]


@pytest.mark.slow
def test_two_processes_that_shard_are_one(tmp_path: Path) -> None:
    """Tied and untied heads, evaluations in between, two micro-batches, stopped and gone on with; saved whole."""
    spawned(sharded, 2, tmp_path)
    for case, (objective, family, changes) in CASES.items():
        folder = tmp_path / case
        settings = {name: value for name, value in changes.items() if name != "fsdp_config"}
        settings = {**SETTINGS, "per_device_train_batch_size": 4, **settings}
        made, logs = trainer(build(objective, family), folder / "one", **settings)
        made.train()
        made.save_model(str(folder / "expected"))
        tolerance = 2e-2 if "bf16" in changes else 1e-5
        found = read_json(folder / "losses.json")
        assert found[:-1] == [pytest.approx(row, abs=tolerance) for row in losses(logs)[:-1]], case
        expected = weights_of(folder / "expected")
        for name in ("found", "again"):
            assert_close(weights_of(folder / name), expected, atol=tolerance, rtol=tolerance, msg=f"{case} {name}")
        assert read_json(folder / "found" / "config.json") == read_json(folder / "expected" / "config.json")
        AutoModelForCausalLM.from_pretrained(folder / "found")
        checkpoint = folder / "run" / "checkpoint-4"
        Checkpoint.require_whole(checkpoint)
        assert_close(load_file(checkpoint / "model.safetensors"), load_file(folder / "found" / "model.safetensors"))
        assert not list(checkpoint.rglob(".metadata")), "DCP writes it with pickle"


@pytest.mark.parametrize(
    ("model", "classes"),
    [
        (student("gpt2"), {"GPT2Block", "ConceptPredictor", "ConceptCompression"}),
        (student("llama", mixing="none"), {"LlamaDecoderLayer", "ConceptPredictor"}),
        (student("qwen3", mixing="pause"), {"Qwen3DecoderLayer"}),
        (
            student("gemma3_text", prediction="hidden", teacher_hidden_size=8),
            {"Gemma3DecoderLayer", "HiddenPredictor", "HiddenCompression"},
        ),
        (plain("gpt2"), {"GPT2Block"}),
    ],
    ids=["cocomix", "prediction-only", "pause", "hidden", "plain"],
)
def test_units(model: Any, classes: set[str]) -> None:
    """Accelerate takes every class that `_no_split_modules` names as a unit, and refuses a name that is not there."""
    assert set(model._no_split_modules) == classes
    assert classes <= {type(module).__name__ for module in model.modules()}


def test_going_on_with_another_launch(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch may be cut another way; neither its size nor the kind of checkpoint may change unnoticed."""

    def recipe(batch: int, accumulation: int) -> Any:
        shape = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        return workshop.recipe("cocomix", name="run", training=shape, tokens=8 * 8 * 16)

    whole, output = train(recipe(8, 1), tmp_path / "whole"), tmp_path / "run"
    with monkeypatch.context() as patched:
        kill_at(patched, 6)
        with pytest.raises(Killed):
            train(recipe(8, 1), output)
    with pytest.raises(CoCoMixError, match=r"128 .* 64"):
        train(recipe(4, 1), output)
    (checkpoint,) = (partial_path(output) / "checkpoints").iterdir()
    with pytest.raises(CoCoMixError, match="without FSDP"):
        check_kind(checkpoint, sharded=True)
    assert partial_path(output).is_dir()
    train(recipe(2, 4), output)
    assert difference(output, whole) < 1e-5
