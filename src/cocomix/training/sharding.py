"""One model spread over processes (FSDP2), in units that fit it; the same on GPUs and on the CPU.

`training: {fsdp: true}` in a recipe, or `accelerate launch --use_fsdp`, asks for it. We shard by ourselves rather than
through accelerate: on the CPU accelerate would train as DDP without saying so, and on GPUs it would make the
language-model head a unit of its own, which is gathered only when the head's `forward` runs; our losses read its weight
instead. Every process builds the whole model from the same seed before it keeps its share, so that a sharded run starts
from the weights of an unsharded one. Weights are gathered in the precision they are kept in (our choice: the numbers of
DDP, for twice the traffic under bf16).
"""

import warnings

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from cocomix.model.backbone import backbone_of
from cocomix.model.configuration import CoCoMixConfig
from cocomix.model.mixing.compression import ConceptCompression, HiddenCompression
from cocomix.model.predictor import ConceptPredictor, HiddenPredictor
from cocomix.training.launching import Sharding

__all__ = ["fsdp_units", "give_back", "repeated_names", "shard_model", "share", "whole", "whole_weights"]

_CONCEPT_UNITS = (ConceptCompression, HiddenCompression, ConceptPredictor, HiddenPredictor)


def fsdp_units(model: PreTrainedModel) -> list[nn.Module]:
    """The modules whose weights are gathered and given back together, children before parents.

    Every decoder block, the compressor, and the concept head (or the predictor of hidden states): the last two have
    2·n_concepts·d_model weights. Embeddings, final norm and language-model head are left to the model itself, whose
    weights are gathered all the time between its forward and backward pass.
    """
    concepts = isinstance(model.config, CoCoMixConfig)
    halves = (model.lower, model.upper) if concepts else (model.base_model,)
    blocks = backbone_of(model.config.backbone if concepts else model.config).blocks
    units = [block for half in halves for block in getattr(half, blocks)]
    return units + [module for module in reversed(list(model.modules())) if isinstance(module, _CONCEPT_UNITS)]


def shard_model(model: PreTrainedModel, device: torch.device, sharding: Sharding) -> None:
    """Keep this process's share of a model's weights, in place.

    Args:
        model: the same on every process, on `device`.
        device: of this process.
        sharding: how.
    """
    if not distributed.is_initialized():  # a process alone, whatever launched it
        store = distributed.HashStore()  # type: ignore[attr-defined]  # public, but not listed
        distributed.init_process_group("gloo" if device.type == "cpu" else None, store=store, rank=0, world_size=1)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    # A warning of in-place operations on what units return, which neither we nor transformers' decoders do.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    for unit in fsdp_units(model):
        fully_shard(unit, mesh=mesh, reshard_after_forward=sharding.reshard_after_forward)
    fully_shard(model, mesh=mesh)


def give_back(model: nn.Module) -> None:
    """Leave each process its share alone, after forward passes that no backward pass followed."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every process; any other as it is. To be called by all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights of a sharded model, on the CPU of the first process; empty on others. To be called by all."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    again = repeated_names(model)
    return {name: value for name, value in state.items() if isinstance(value, Tensor) and name not in again}


def repeated_names(model: nn.Module) -> set[str]:
    """Names under which a tied weight stands once more."""
    once = {name for name, _ in model.named_parameters()}
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
