"""How a recipe or a launcher wants a run's processes to share the work; wishes that would not come true are refused."""

import importlib.util
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cocomix.runtime.errors import CoCoMixError

__all__ = ["Sharding", "check_deepspeed", "sharding_asked"]

_ACCELERATE = "ACCELERATE_USE_FSDP"
_OURS = ("state_dict_type", "auto_wrap_policy", "transformer_layer_cls_to_wrap", "cpu_ram_efficient_loading")


@dataclass(frozen=True)
class Sharding:
    """How a model is sharded.

    Attributes:
        reshard_after_forward: give a unit's weights back after its forward pass and gather them again for the backward
            pass; `False` keeps them, which takes memory and saves traffic.
    """

    reshard_after_forward: bool = True


def sharding_asked(training: Mapping[str, Any], environment: MutableMapping[str, str]) -> Sharding | None:
    """What a recipe's `training:` or accelerate's launcher asks for; `None` where neither wants FSDP.

    Args:
        training: `fsdp` (true or false) and `fsdp_config` (a mapping, or the path of a JSON file) are read.
        environment: the process's. Accelerate's wish is taken out of it, so that accelerate does not shard as well.

    Raises:
        CoCoMixError: FSDP1 or an option we do not have is asked for, or `fsdp_config` cannot be read.
    """
    launched = environment.get(_ACCELERATE, "false").lower() in ("true", "1")
    asked = training.get("fsdp", False) or False
    if not isinstance(asked, bool):
        raise CoCoMixError(
            f"training.fsdp is {asked!r}; set it to true, with options such as reshard_after_forward in "
            "training.fsdp_config."
        )
    if not asked and not launched:
        if training.get("fsdp_config"):
            raise CoCoMixError("training.fsdp_config has no effect without training.fsdp: true; add it.")
        return None
    _check_beside(training)
    environment.pop(_ACCELERATE, None)
    if training.get("fsdp_config") or not launched:
        options, where = _fsdp_config(training.get("fsdp_config")), "training.fsdp_config."
    else:
        names = ("version", "reshard_after_forward", "offload_params", "activation_checkpointing")
        found = {name: environment.get(f"FSDP_{name.upper()}") for name in names}
        options, where = {name: value for name, value in found.items() if value is not None}, "fsdp_"
    return _sharding(options, where)


def _check_beside(training: Mapping[str, Any]) -> None:
    """Refuse what does not go with sharding."""
    reasons = {
        "deepspeed": "both shard the model; remove one of them",
        "fp16": "its loss scaler does not know of shards; use training.bf16",
        "torch_compile": "compiled graphs across gathered weights are not tested; leave one of them out",
        "auto_find_batch_size": "the model cannot be unsharded for another try; leave it out",
    }
    for name, reason in reasons.items():
        if training.get(name):
            raise CoCoMixError(f"training.{name} and fsdp exclude each other: {reason}.")


def _fsdp_config(config: Any) -> dict[str, Any]:
    """The options, with or without accelerate's prefix `fsdp_`."""
    return {name.removeprefix("fsdp_"): value for name, value in _mapping(config or {}, "training.fsdp_config").items()}


def _mapping(config: Any, where: str) -> dict[str, Any]:
    """A mapping, or the one in the JSON file of that path."""
    if isinstance(config, str):
        try:
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CoCoMixError(f"{where} {config!r} cannot be read: {error}.") from None
    if not isinstance(config, dict):
        raise CoCoMixError(f"{where} must be a mapping, or the path of a JSON file with one.")
    return {str(name): value for name, value in config.items()}


def _sharding(options: Mapping[str, Any], where: str) -> Sharding:
    values = dict(options)
    for name in _OURS:
        values.pop(name, None)  # units and checkpoint format are ours, whatever accelerate would have done
    try:
        version = TypeAdapter(int).validate_python(values.pop("version", 2))
        flags = {name: TypeAdapter(bool).validate_python(value) for name, value in values.items()}
    except ValidationError as error:
        raise CoCoMixError(f"{where}*: {error.errors()[0]['msg']}, not {error.errors()[0]['input']!r}.") from None
    if version != 2:
        raise CoCoMixError(f"{where}version is {version}; only FSDP2 is supported, set it to 2.")
    sharding = Sharding(flags.pop("reshard_after_forward", True))
    if flags.get("activation_checkpointing"):
        raise CoCoMixError(f"{where}activation_checkpointing: set training.activation_checkpointing instead.")
    for name, wanted in flags.items():
        if wanted:
            raise CoCoMixError(f"{where}{name} is not supported; remove it (reshard_after_forward is).")
    return sharding


def check_deepspeed(training: Mapping[str, Any], environment: Mapping[str, str], has_accelerator: bool) -> None:
    """Refuse a wish for DeepSpeed that would not come true.

    Args:
        training: the recipe's; `deepspeed` is a mapping, or the path of a JSON file.
        environment: the process's; `accelerate launch --use_deepspeed` is known by it.
        has_accelerator: whether there is a device that DeepSpeed is for.

    Raises:
        CoCoMixError: DeepSpeed is not installed, there is no accelerator, its configuration cannot be read, or asks for
            ZeRO-3.
    """
    asked = training.get("deepspeed")
    launched = environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if not asked and not launched:
        return
    who = "training.deepspeed" if asked else "accelerate launch --use_deepspeed"
    if importlib.util.find_spec("deepspeed") is None:
        raise CoCoMixError(f"{who} needs the package deepspeed; pip install deepspeed, or set training.fsdp: true.")
    if not has_accelerator:
        raise CoCoMixError(f"{who} needs a GPU and there is none; set training.fsdp: true, which needs none.")
    stage = _zero_stage(asked) if asked else environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if str(stage) == "3":
        raise CoCoMixError(
            f"{who} asks for ZeRO-3, which gathers weights module by module where our losses read them across modules; "
            "set training.fsdp: true, which shards the same, or use ZeRO-2."
        )


def _zero_stage(config: Any) -> Any:
    zero = _mapping(config, "training.deepspeed").get("zero_optimization", {})
    return zero.get("stage", 0) if isinstance(zero, dict) else 0
