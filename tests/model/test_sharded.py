"""A student whose parameters are sharded over two processes (FSDP2) computes what the whole one does."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import spawn

from cocomix.model import CoCoMixForCausalLM
from tests.model.factories import concepts, student, tokens

PROCESSES = 2
CASES = {"gpt2": False, "llama": True}  # with gradient checkpointing?
RANKS = {"gpt2": None, "llama": 5}  # of W_pred


def loss_of(model: CoCoMixForCausalLM, rows: slice) -> Tensor:
    """The mean loss of all rows' part in `rows`: summed there, divided by the counts of the whole batch."""
    everything, labels = tokens(batch=4), concepts(batch=4)
    output = model(
        everything[rows],
        labels=everything[rows],
        concept_labels=labels[rows],
        num_items_in_batch=4 * 10,
        num_concept_items_in_batch=labels.ne(-100).any(-1).sum(),
        output_logits=False,
    )
    loss: Tensor = output.loss
    return loss


def shard(model: CoCoMixForCausalLM) -> None:
    """As a launcher does: every class of `_no_split_modules` is a unit, then the model."""
    mesh = init_device_mesh("cpu", (PROCESSES,))
    units = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    assert len(units) == model.config.num_hidden_layers + 2  # the blocks, the predictor and the compression
    for unit in (*units, model):
        fully_shard(unit, mesh=mesh)


def sharded_result(family: str, checkpointing: bool, folder: Path) -> dict[str, Tensor]:
    """The loss of one process's share of the rows; every weight's whole gradient, and the weight after a step.

    The weights are those of a second model that read what the first one wrote with DCP.
    """
    model = student(family, concept_rank=RANKS[family]).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    shard(model)
    first = dist.get_rank() * 2
    for _ in range(2):  # the second pass meets what the first left behind
        model.zero_grad()
        loss = loss_of(model, slice(first, first + 2))
        (loss * PROCESSES).backward()  # gradients are averaged over processes
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    save({"model": get_model_state_dict(model)}, checkpoint_id=str(folder))
    other = student(family, concept_rank=RANKS[family]).train()
    shard(other)
    read = {"model": get_model_state_dict(other)}
    load(read, checkpoint_id=str(folder))
    set_model_state_dict(other, read["model"])
    stepped = {f"stepped.{name}": p.detach().full_tensor() for name, p in other.named_parameters()}
    dist.all_reduce(loss.detach_())
    return {"loss": loss, **gradients, **stepped}


def process(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    try:
        for family, checkpointing in CASES.items():
            result = sharded_result(family, checkpointing, Path(folder) / f"{family}-checkpoint")
            if rank == 0:
                save_file({name: tensor.contiguous() for name, tensor in result.items()}, f"{folder}/{family}")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_shards_are_one_model(tmp_path: Path) -> None:
    spawn(process, (str(tmp_path),), nprocs=PROCESSES)
    for family in CASES:
        found = load_file(tmp_path / family)
        model = student(family, concept_rank=RANKS[family]).train()
        loss = loss_of(model, slice(None))
        loss.backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()
        expected |= {f"stepped.{name}": p.detach() for name, p in model.named_parameters()}
        assert found.keys() == {"loss", *expected}
        torch.testing.assert_close(found["loss"], loss.detach())
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=f"{family} {name}")
