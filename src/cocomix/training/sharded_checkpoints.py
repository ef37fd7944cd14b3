"""Checkpoints of sharded models: one safetensors file per process, read back by any number of processes.

PyTorch's distributed checkpoints (DCP) say in a pickle which part of a tensor is in which file. Its safetensors layout
(`HuggingFaceStorageWriter`) says so in the header of each file instead, and holds tensors alone; so weights and
optimizer state go there, and what is no tensor (learning rates, the schedule's place) into a JSON file. Nothing is
unpickled. Reading hands every process the parts it needs, however the files were cut.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer
from transformers import AutoConfig, PreTrainedModel

from cocomix.artifacts import read_json, whole_folder, write_json
from cocomix.model.accounting import build_model
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.auto_classes import write_auto_classes
from cocomix.training.checkpoints import Checkpoint
from cocomix.training.sharding import repeated_names

__all__ = ["consolidate", "is_sharded", "load_optimizer", "load_weights", "save_optimizer", "save_weights"]

_WEIGHTS, _OPTIMIZER = "weights", "optimizer"  # folders of a checkpoint
_SETTINGS = "optimizer.json"
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def is_sharded(checkpoint: Path) -> bool:
    """Whether a checkpoint was written by `save_weights`."""
    return any((checkpoint / _WEIGHTS).glob("*.safetensors"))


def save_weights(checkpoint: Path, model: PreTrainedModel, first: bool) -> None:
    """Write a sharded model's weights, and its configuration. To be called by all processes.

    Args:
        checkpoint: the folder, on a file system that all processes share.
        model: the model.
        first: whether this is the process that writes what is there once.
    """
    if first:
        model.config.save_pretrained(str(checkpoint))
    _write(checkpoint / _WEIGHTS, _weights(model))


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Read what `save_weights` wrote into a model sharded in any way. To be called by all processes."""
    weights = _weights(model)
    _read(checkpoint / _WEIGHTS, weights)
    set_model_state_dict(model, weights, options=StateDictOptions(strict=False))


def save_optimizer(
    checkpoint: Path, model: nn.Module, optimizer: Optimizer, schedule: Mapping[str, Any], first: bool
) -> None:
    """Write the state of a sharded model's optimizer and of its schedule. To be called by all processes.

    Args:
        checkpoint: as for `save_weights`.
        model: the model.
        optimizer: PyTorch's own, not accelerate's wrapper.
        schedule: the learning-rate schedule's `state_dict`, in JSON's types.
        first: whether this is the process that writes what is there once.
    """
    tensors, settings = _parted(get_optimizer_state_dict(model, optimizer, options=_FLAT))
    if first:
        write_json(checkpoint / _SETTINGS, {"settings": settings, "schedule": dict(schedule)})
    if tensors:  # plain SGD has none
        _write(checkpoint / _OPTIMIZER, tensors)


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Read what `save_optimizer` wrote; returns the schedule's state. To be called by all processes."""
    stored = read_json(checkpoint / _SETTINGS)
    tensors, settings = _parted(get_optimizer_state_dict(model, optimizer, options=_FLAT))
    if tensors:
        _read(checkpoint / _OPTIMIZER, tensors)
    # JSON has lists for tuples, such as AdamW's betas.
    settings |= {
        name: tuple(value) if isinstance(settings.get(name), tuple) else value
        for name, value in stored["settings"].items()
    }
    set_optimizer_state_dict(model, optimizer, {**tensors, **settings}, options=_FLAT)
    schedule: dict[str, Any] = stored["schedule"]
    return schedule


def consolidate(checkpoint: Path, output: Path) -> Path:
    """Make one model folder that `from_pretrained` loads of a sharded checkpoint.

    Args:
        checkpoint: a folder `checkpoint-STEP` of a sharded run.
        output: the folder to create.

    Returns:
        `output`, with `config.json` and `model.safetensors`; the tokenizer stays with the data.

    Raises:
        CoCoMixError: `checkpoint` is not whole or not sharded; `output` exists.
    """
    if not checkpoint.is_dir():
        raise CoCoMixError(
            f"{checkpoint} does not exist; name a folder such as RUN.partial/checkpoints/checkpoint-100."
        )
    if not is_sharded(checkpoint):
        raise CoCoMixError(f"{checkpoint} is no sharded checkpoint; a model.safetensors in it is whole already.")
    Checkpoint.require_whole(checkpoint)
    model = build_model(AutoConfig.from_pretrained(str(checkpoint), trust_remote_code=False), None)
    weights = _weights(model)
    with _without_a_word():
        load(weights, storage_reader=HuggingFaceStorageReader(str(checkpoint / _WEIGHTS)), no_dist=True)
    model.load_state_dict(weights, strict=False)
    with whole_folder(output) as folder:
        model.save_pretrained(str(folder))
        write_auto_classes(folder)
    return output


def _weights(model: nn.Module) -> dict[str, Any]:
    """A model's state, every tied weight under one name."""
    again = repeated_names(model)
    return {name: value for name, value in get_model_state_dict(model).items() if name not in again}


def _write(folder: Path, tensors: dict[str, Any]) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _without_a_word():
        save(tensors, storage_writer=writer)


def _read(folder: Path, tensors: dict[str, Any]) -> None:
    with _without_a_word():
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))


def _parted(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors, and everything else."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}


@contextmanager
def _without_a_word() -> Iterator[None]:
    """DCP warns of what is on its way out inside itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
