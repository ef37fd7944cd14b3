"""One process that shards trains as one that does not: units, curves, checkpoints. Several: `test_processes`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from cocomix.artifacts import Damaged, partial_path, read_json
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from cocomix.training.checkpoints import last_complete_checkpoint
from cocomix.training.distillation import OnlineTeacher
from cocomix.training.launching import Sharding
from cocomix.training.sharded_checkpoints import consolidate
from cocomix.training.sharded_trainer import ShardedTrainer
from cocomix.training.sharding import fsdp_units, shard_model
from tests.many.launches import difference
from tests.model.factories import plain, student
from tests.training import test_trainer
from tests.training.test_resume import Killed, kill_at
from tests.training.test_trainer import Logs, build
from tests.workshop import CONCEPTS, Workshop


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """The group of one process that sharding makes is taken down again."""
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


def sharded(
    monkeypatch: pytest.MonkeyPatch, model: Any, folder: Path, reshard: bool = True, **settings: Any
) -> tuple[ShardedTrainer, Logs]:
    with monkeypatch.context() as patched:
        patched.setattr(test_trainer, "CoCoMixTrainer", partial(ShardedTrainer, sharding=Sharding(reshard)))
        made, logs = test_trainer.trainer(model, folder, **settings)
    assert isinstance(made, ShardedTrainer)
    return made, logs


@pytest.mark.parametrize(
    ("model", "concept_units"),
    [
        (partial(student, "gpt2"), {"predictor", "mixing.compression"}),
        (partial(student, "llama", mixing="none"), {"predictor"}),
        (partial(student, "qwen3", mixing="pause"), set()),
        (partial(student, "gpt2", prediction="hidden", teacher_hidden_size=8), {"predictor", "mixing.compression"}),
        (partial(plain, "gpt2"), set()),
    ],
    ids=["cocomix", "prediction-only", "pause", "hidden", "plain"],
)
def test_units(model: Any, concept_units: set[str]) -> None:
    """Blocks, the concept head and the compressor are gathered by themselves, everything else with the model."""
    made = model()
    listed = len(fsdp_units(made))
    shard_model(made, torch.device("cpu"), Sharding())
    units = {name for name, module in made.named_modules() if isinstance(module, FSDPModule)}
    blocks = {name for name in units if name.rpartition(".")[2].isdigit()}
    assert units - blocks == concept_units | {""}
    assert len(blocks) == 3
    assert listed == len(units) - 1
    assert all(isinstance(weight, DTensor) for weight in made.parameters())


def losses(logs: Logs) -> list[dict[str, float]]:
    return [{name: row[name] for name in row if "loss" in name or name == "grad_norm"} for row in logs.rows]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Without the biases of keys: these have no gradient but rounding, of which AdamW makes steps."""
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("c_attn.bias"):
            weights[name].chunk(3)[1].zero_()
    return weights


@pytest.mark.parametrize(
    ("objective", "family", "reshard"),
    [("cocomix", "gpt2", True), ("cocomix", "llama", False), ("cocomix", "gemma3_text", True), ("ntp", "llama", True)],
)
def test_sharded_is_unsharded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, family: str, reshard: bool
) -> None:
    """Tied and untied heads, evaluations in between, two micro-batches, stopped and gone on with; saved whole."""
    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "eval_strategy": "steps"}
    settings |= {"eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
    made, logs = test_trainer.trainer(build(objective, family), tmp_path / "plain", steps=4, **settings)
    made.train()
    made.save_model(str(tmp_path / "expected"))

    first, begun = sharded(monkeypatch, build(objective, family), tmp_path / "sharded", reshard, steps=4, **settings)
    first.evaluate()
    first.train()
    assert losses(begun)[1:-1] == [pytest.approx(row, abs=1e-5) for row in losses(logs)[:-1]]
    first.save_model(str(tmp_path / "found"))
    expected = weights_of(tmp_path / "expected")
    assert_close(weights_of(tmp_path / "found"), expected, atol=1e-5, rtol=1e-5)
    assert read_json(tmp_path / "found" / "config.json") == read_json(tmp_path / "expected" / "config.json")
    assert not list((tmp_path / "sharded" / "checkpoint-4").rglob("*.pt"))

    again, _ = sharded(monkeypatch, build(objective, family), tmp_path / "sharded", reshard, steps=4, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "sharded" / "checkpoint-2"))
    again.save_model(str(tmp_path / "again"))
    assert_close(weights_of(tmp_path / "again"), expected, atol=1e-5, rtol=1e-5)

    whole = consolidate(tmp_path / "sharded" / "checkpoint-4", tmp_path / "whole")
    assert_close(load_file(whole / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors"))
    AutoModelForCausalLM.from_pretrained(whole)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_steps_without_a_finite_gradient_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    made, logs = sharded(monkeypatch, build("ntp"), tmp_path, steps=3, max_grad_norm=clip)
    made.skips_non_finite = True
    objective = made.objective

    def spoiled(model: Any, inputs: Any, divisors: Any) -> Any:
        output = objective(model, inputs, divisors)
        output.loss = output.loss * (float("nan") if made.state.global_step == 1 else 1.0)
        return output

    made.objective = spoiled
    made.train()
    assert made.skipped_steps == 1
    assert [isinstance(row.get("grad_norm"), float) for row in logs.rows[:3]] == [True, False, True]


def test_a_torn_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    made, _ = sharded(monkeypatch, build("cocomix"), tmp_path, steps=2, save_strategy="steps", save_steps=1)
    made.train()
    torn = tmp_path / "checkpoint-2"
    shard = next((torn / "weights").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(Damaged, match="weights/"):
        consolidate(torn, tmp_path / "model")
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert shard.name in caplog.text
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").touch()
    with pytest.raises(CoCoMixError, match="already exists"):
        consolidate(tmp_path / "checkpoint-1", tmp_path / "model")


def test_teachers_are_not_sharded(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and distillation online: the teacher stays whole, and the run ends as an unsharded one does."""
    changes = {
        "name": "run",
        "labels": "online",
        "teacher": {"model": str(workshop.teacher), "layer": 1},
        "dictionary": {"path": str(workshop.dictionary)},
        "model": {"num_concepts": CONCEPTS},
        "distillation": {"weight": 0.5},
        "tokens": 4 * 8 * 16,
    }
    original, teachers = OnlineTeacher.distributions, []

    def distributions(self: OnlineTeacher, batch: Any) -> Any:
        teachers.append(self.decoder.model)
        return original(self, batch)

    monkeypatch.setattr(OnlineTeacher, "distributions", distributions)
    expected = train(workshop.recipe("cocomix", **changes), tmp_path / "plain")
    found = train(workshop.recipe("cocomix", training={"fsdp": True}, **changes), tmp_path / "sharded")
    assert teachers
    assert not any(isinstance(weight, DTensor) for teacher in teachers for weight in teacher.parameters())
    final = [read_json(run / "manifest.json")["final"] for run in (found, expected)]
    assert final[0] == pytest.approx(final[1], rel=1e-5)
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}


def test_going_on_with_another_launch(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch may be cut another way; neither its size nor the kind of checkpoint may change unnoticed."""

    def recipe(batch: int, accumulation: int, fsdp: bool = False) -> Any:
        shape = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "fsdp": fsdp}
        return workshop.recipe("cocomix", name="run", training=shape, tokens=8 * 8 * 16)

    whole, output = train(recipe(8, 1), tmp_path / "whole"), tmp_path / "run"
    with monkeypatch.context() as patched:
        kill_at(patched, 6)
        with pytest.raises(Killed):
            train(recipe(8, 1), output)
    with pytest.raises(CoCoMixError, match="with 128 tokens per step and this launch has 64; set"):
        train(recipe(4, 1), output)
    with pytest.raises(CoCoMixError, match="another recipe"):
        train(recipe(8, 1, fsdp=True), output)
    with monkeypatch.context() as patched:  # as under `accelerate launch --use_fsdp`
        patched.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(CoCoMixError, match="was written without FSDP; go on without it"):
            train(recipe(8, 1), output)
    assert partial_path(output).is_dir()
    train(recipe(2, 4), output)
    assert difference(output, whole) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sharded_in_bfloat16_on_a_gpu(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(workshop.recipe("cocomix", training={"bf16": True}), tmp_path / "plain")
    recipe = workshop.recipe("cocomix", training={"bf16": True, "fsdp": True})
    with monkeypatch.context() as patched:
        kill_at(patched, 6)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "sharded")
    train(recipe, tmp_path / "sharded")
    final = [read_json(tmp_path / name / "manifest.json")["final"]["eval_loss"] for name in ("sharded", "plain")]
    assert final[0] == pytest.approx(final[1], rel=2e-2)
