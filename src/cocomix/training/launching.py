"""How a recipe or a launcher wants a run's processes to share the work; wishes that would not come true are refused."""

import importlib.util
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cocomix.concepts import LabellerConfig, OnlineConfig
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.objectives import Objective

_OPTIONS = ("reshard_after_forward", "activation_checkpointing", "auto_wrap_policy", "transformer_layer_cls_to_wrap")
_REFUSED = {
    "deepspeed": "both shard the model; remove one of them",
    "fp16": "its loss scaler does not know of shards; use training.bf16",
    "torch_compile": "compiled graphs across gathered weights are not tested; leave one of them out",
}


def sharding_asked(training: Mapping[str, Any], environment: Mapping[str, str], processes: int) -> dict[str, Any]:
    """The fields of `TrainingArguments` that make accelerate shard the model (FSDP2); empty where nobody asks for it.

    Args:
        training: of the recipe; `fsdp` (true or false) and `fsdp_config` (a mapping, or a JSON file's path) are read.
        environment: the process's, which `accelerate launch --use_fsdp` writes its options into.
        processes: that train together, each on a GPU; 0 where there is no GPU.

    Raises:
        CoCoMixError: FSDP1 or an option that is not tested is asked for, `fsdp_config` cannot be read, or there is
            nothing to spread the model over.
    """
    launched = environment.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")
    asked = training.get("fsdp", False) or False
    if not isinstance(asked, bool):
        raise CoCoMixError(f"training.fsdp is {asked!r}; set it to true, with options in training.fsdp_config.")
    if not asked and not launched:
        if training.get("fsdp_config"):
            raise CoCoMixError("training.fsdp_config has no effect without training.fsdp: true; add it.")
        return {}
    for name, reason in _REFUSED.items():
        if training.get(name):
            raise CoCoMixError(f"training.{name} and fsdp exclude each other: {reason}.")
    if training.get("fsdp_config") or not launched:
        options = _mapping(training.get("fsdp_config") or {}, "training.fsdp_config")
        options, where = {name.removeprefix("fsdp_"): value for name, value in options.items()}, "training.fsdp_config."
    else:
        options, where = _of_launcher(environment), "fsdp_"
    _check_options(options, where)
    if processes == 0:
        raise CoCoMixError("fsdp needs GPUs: on CPUs accelerate would keep a whole model in every process; remove it.")
    if processes == 1:
        raise CoCoMixError("fsdp spreads a model over processes and there is one; start several with torchrun.")
    return {"fsdp": True, "fsdp_config": options}


def refuse_outside_forward(objectives: Iterable[Objective]) -> None:
    """Refuse, under FSDP, objectives that read weights of the model when they are not gathered.

    Raises:
        CoCoMixError: naming the objective.
    """
    for one in objectives:
        if one.outside_forward:
            raise CoCoMixError(
                f"auxiliary.{one.name} uses the model's embedding or head outside its forward pass, where FSDP holds "
                "only a shard of them; train under DDP, or leave it out (of nextlat: kl)."
            )


def refuse_sharded_student(labels: LabellerConfig | None) -> None:
    """Refuse, under FSDP, labels that are made by a copy of the student.

    Raises:
        CoCoMixError: they are.
    """
    if isinstance(labels, OnlineConfig):
        raise CoCoMixError(
            "labels of kind 'online' follow the student's weights, of which FSDP leaves only a shard in each process; "
            "train under DDP, or take another kind of labels."
        )


def gather_as_kept(plugin: Any, objectives: Iterable[Objective]) -> None:
    """Have accelerate's FSDP plugin gather weights, and reduce gradients, in the precision they are kept in.

    Accelerate's own policy under bf16 would also round what modules return, the losses among it; `autocast` rounds
    products alone, so that sharded numbers are those of DDP.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    refuse_outside_forward(objectives)
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    # FSDP warns of changing in place what units return, which neither we nor transformers' decoders do.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)


def _of_launcher(environment: Mapping[str, str]) -> dict[str, Any]:
    """The options of accelerate's launcher that ask for something."""
    names = {"transformer_layer_cls_to_wrap": "TRANSFORMER_CLS_TO_WRAP"}
    asked = ("version", "state_dict_type", *_OPTIONS, "offload_params")
    found = {name: environment.get(f"FSDP_{names.get(name, name.upper())}") for name in asked}
    return {name: value for name, value in found.items() if value not in (None, "", "None")}


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


def _check_options(options: Mapping[str, Any], where: str) -> None:
    """Refuse what accelerate would read in another way than it is meant, not read at all, or what is not tested."""
    for name, value in options.items():
        text = str(value).upper()
        if name == "version":
            if text != "2":
                raise CoCoMixError(f"{where}version is {value}; only FSDP2 is supported, set it to 2.")
        elif name == "state_dict_type":
            if text != "FULL_STATE_DICT":
                raise CoCoMixError(
                    f"{where}state_dict_type is {value}, whose checkpoints hold a pickle that resuming would run; use "
                    "FULL_STATE_DICT, which any number of processes reads."
                )
        elif name in ("reshard_after_forward", "activation_checkpointing"):
            if text not in ("TRUE", "FALSE"):
                raise CoCoMixError(f"{where}{name} is {value!r}; set it to true or false.")
        elif name not in _OPTIONS and text != "FALSE":
            raise CoCoMixError(f"{where}{name} is not supported; remove it (these are: {', '.join(_OPTIONS)}).")


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
            f"{who} asks for ZeRO-3, which is not tested with our heads: these finish their gradients in the forward "
            "pass; set training.fsdp: true, which shards the same, or use ZeRO-2."
        )


def _zero_stage(config: Any) -> Any:
    zero = _mapping(config, "training.deepspeed").get("zero_optimization", {})
    return zero.get("stage", 0) if isinstance(zero, dict) else 0
