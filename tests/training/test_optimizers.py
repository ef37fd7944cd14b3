"""Muon beside AdamW: which weight goes where, matrices in one weight, checkpoints, several processes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import spawn
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from cocomix.model.backbone import SUPPORTED_BACKBONES
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import muon, train
from cocomix.training.checkpoints import last_complete_checkpoint
from cocomix.training.optimizers import MuonAndAdamW
from cocomix.training.recipe import load_recipe
from tests.many.launches import difference, launched
from tests.model.factories import CONCEPTS, D_MODEL, VOCAB, plain, student, tokens
from tests.training.test_arguments import arguments
from tests.training.test_trainer import build, trainer
from tests.workshop import BLOCK, Workshop

STOCK = (
    *("output_dir", "optim", "train_sampling_strategy", "max_steps", "learning_rate", "warmup_steps", "weight_decay"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "adam_beta2", "per_device_train_batch_size", "report_to", "use_cpu"),
)


def optimizer(model: torch.nn.Module, **training: Any) -> MuonAndAdamW:
    factory, settings = muon(arguments(BLOCK, optim="muon", **training))
    made: MuonAndAdamW = factory()(model, **settings)
    return made


def gradients(model: torch.nn.Module, seed: int = 5) -> None:
    source = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=source)


@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
@pytest.mark.parametrize("build_model", [student, plain])
def test_every_weight_has_one_place(family: str, build_model: Any) -> None:
    """Matrices of blocks go to Muon, embeddings and heads to AdamW with weight decay, gains and biases without."""
    model = build_model(family)
    made = optimizer(model)
    names = {weight: name for name, weight in model.named_parameters()}
    decays = {names[weight]: group["weight_decay"] for group in made.param_groups for weight in group["params"]}
    assert sorted(decays) == sorted(names.values())
    matrices = {names[weight] for group in made.param_groups if "ns_steps" in group for weight in group["params"]}
    assert matrices == {
        name
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and not {VOCAB, CONCEPTS}.intersection(weight.shape) and "wpe" not in name
    }
    assert {name for name, decay in decays.items() if decay == 0.0} == {
        name for name, weight in model.named_parameters() if weight.ndim == 1
    }
    fused = {"gpt2": 3, "gpt_neox": 3, "phi3": 5}.get(family, 0)
    assert sum(len(group["layout"][2]) for group in made.param_groups if group.get("layout")) == fused


@pytest.mark.parametrize(
    ("family", "name", "dim", "heads"),
    [("gpt2", "attn.c_attn", 1, 1), ("gpt_neox", "attention.query_key_value", 0, 4), ("phi3", "qkv_proj", 0, 1)],
)
def test_a_fused_weight_is_three_matrices(family: str, name: str, dim: int, heads: int) -> None:
    model = plain(family)
    weight = next(weight for full, weight in model.named_parameters() if full.endswith(f"{name}.weight"))

    def parts(tensor: Tensor) -> list[Tensor]:
        """As the decoder's own forward pass takes them apart."""
        if heads > 1:
            return [part.flatten(0, 1) for part in tensor.unflatten(0, (heads, 3, -1)).unbind(1)]
        config = model.config
        keys = (
            D_MODEL // config.num_attention_heads * getattr(config, "num_key_value_heads", config.num_attention_heads)
        )
        return list(tensor.split((D_MODEL, keys, keys), dim))

    separate = [torch.nn.Parameter(part.detach().clone()) for part in parts(weight)]
    made = optimizer(model)
    settings = {"momentum": 0.95, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.1, "lr": 6e-4}
    apart = torch.optim.Muon(separate, **settings)
    for step in range(3):
        gradients(model, step)
        for part, gradient in zip(separate, parts(weight.grad), strict=True):
            part.grad = gradient.clone()
        made.step()
        apart.step()
    for part, expected in zip(parts(weight), separate, strict=True):
        assert_close(part, expected, rtol=0, atol=1e-7)


def test_an_unknown_fused_weight_is_refused() -> None:
    model = plain("llama")
    model.model.layers[1].self_attn.Wqkv = torch.nn.Linear(4, 12)
    with pytest.raises(CoCoMixError, match=r"layers\.1\.self_attn\.Wqkv"):
        optimizer(model)


def test_settings() -> None:
    made = optimizer(plain("llama"), learning_rate=1e-3, optim_args="momentum=0.9, ns_steps=3, learning_rate=2e-3")
    assert [group["lr"] for group in made.param_groups] == [2e-3, 1e-3, 1e-3]
    assert (made.param_groups[0]["momentum"], made.param_groups[0]["ns_steps"]) == (0.9, 3)
    for wrong in ("beta=3", "momentum=x", "momentum"):
        with pytest.raises(CoCoMixError, match=rf"optim_args.*'{wrong}'"):
            arguments(BLOCK, optim="muon", optim_args=wrong)


@pytest.mark.parametrize("schedule", ["cosine_with_min_lr", "warmup_stable_decay", "linear", "reduce_lr_on_plateau"])
def test_one_schedule_for_both(tmp_path: Path, schedule: str) -> None:
    more = {"eval_strategy": "steps", "eval_steps": 1} if "plateau" in schedule else {}
    made, logs = trainer(build("cocomix"), tmp_path, steps=4, optim="muon", lr_scheduler_type=schedule, **more)
    made.train()
    assert isinstance(made.optimizer.optimizer, MuonAndAdamW)
    assert len({group["lr"] for group in made.optimizer.param_groups}) == 1
    assert len(logs.rows) >= 4


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_resumed_equals_uninterrupted(tmp_path: Path, family: str) -> None:
    """Bit for bit, with the state of both halves."""
    weights = []
    for part in ("whole", "resumed"):
        model = build("cocomix", family)
        made, _ = trainer(model, tmp_path, steps=6, save_strategy="steps", save_steps=3, optim="muon")
        checkpoint = None
        if part == "resumed":
            shutil.rmtree(tmp_path / "checkpoint-6")
            checkpoint = last_complete_checkpoint(tmp_path)
        made.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        weights.append({name: value.detach() for name, value in model.named_parameters()})
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_the_stock_trainer_takes_it(tmp_path: Path) -> None:
    found = []
    for ours in (True, False):
        model = build("ntp", "llama")
        made, _ = trainer(model, tmp_path, optim="muon", data_seed=1)
        if not ours:
            blocks = [{**block, "labels": block["input_ids"]} for block in made.train_dataset]
            order = list(made.get_train_dataloader().batch_sampler)
            blocks = [blocks[index] for batch in order for index in batch]
            in_order = {**made.args.to_dict(), "optim": "adamw_torch", "train_sampling_strategy": "sequential"}
            stock = TrainingArguments(**{name: in_order[name] for name in STOCK})
            made = Trainer(model, stock, train_dataset=blocks, optimizer_cls_and_kwargs=muon(stock))
        made.train()
        found.append(dict(model.named_parameters()))
    for name, value in found[0].items():
        assert_close(value, found[1][name], rtol=1e-4, atol=1e-6, msg=name)


def sharded(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    try:
        for family in ("gpt2", "gpt_neox"):
            found, expected = student(family), student(family)
            for block in (*found.lower.modules(), *found.upper.modules()):
                if type(block).__name__ in ("GPT2Block", "GPTNeoXLayer"):
                    fully_shard(block, mesh=init_device_mesh("cpu", (2,)))
            fully_shard(found, mesh=init_device_mesh("cpu", (2,)))
            optimizers = [optimizer(model) for model in (found, expected)]
            for _ in range(2):
                for model, made in zip((found, expected), optimizers, strict=True):
                    ids = tokens(2, 8)
                    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
                    made.step()
                    made.zero_grad()
            for name, value in expected.named_parameters():
                assert_close(found.get_parameter(name).full_tensor(), value, rtol=0, atol=2e-5, msg=f"{family} {name}")
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_sharded_weights_take_the_same_steps(tmp_path: Path) -> None:
    """A matrix of which a process holds some rows is orthogonalised as a whole, its q, k and v each."""
    spawn(sharded, (str(tmp_path),), nprocs=2)


@pytest.mark.slow
def test_a_sharded_run_stops_and_goes_on(workshop: Workshop, tmp_path: Path) -> None:
    """Its checkpoint holds both halves' state, under FSDP2 on two processes; the curve is that of one process."""
    training = {"optim": "muon", "logging_steps": 1, "learning_rate": 1e-3, "save_steps": 100, "eval_steps": 100}
    changes = {"name": "run", "tokens": 10 * 16 * BLOCK, "batch_tokens": 16 * BLOCK, "training": training}
    one = train(workshop.recipe("cocomix", **changes), tmp_path / "one")
    training["fsdp"] = True
    two, output = workshop.recipe_file(tmp_path / "two.yaml", "cocomix", **changes), tmp_path / "two"
    launched([6, "train", two, "--output", output], 2, module="tests.many.child", status=1)
    launched([0, "train", two, "--output", output], 2, module="tests.many.child")
    assert difference(output, one) < 1e-3


@pytest.mark.slow
def test_two_processes_begin_and_one_ends(workshop: Workshop, tmp_path: Path) -> None:
    """The recipe is the same: `batch_tokens` makes one micro-batch of each of two processes, two of one."""
    training = {"optim": "muon", "per_device_train_batch_size": 8, "save_steps": 100, "learning_rate": 1e-3}
    changes = {"name": "run", "tokens": 8 * 16 * BLOCK, "batch_tokens": 16 * BLOCK, "training": training}
    one = train(workshop.recipe("cocomix", **changes), tmp_path / "one")
    recipe = workshop.recipe_file(tmp_path / "two.yaml", "cocomix", **changes)
    launched([5, "train", recipe, "--output", tmp_path / "two"], 2, module="tests.many.child", status=1)
    train(load_recipe(recipe), tmp_path / "two")
    weights, expected = (load_file(run / "model.safetensors") for run in (tmp_path / "two", one))
    for name, value in weights.items():
        assert_close(value, expected[name], rtol=0, atol=1e-4, msg=name)
