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

_VALUES = {
    "version": (("2",), "only FSDP2 is supported"),
    "state_dict_type": (("FULL_STATE_DICT",), "checkpoints of another hold a pickle that resuming would run"),
    "reshard_after_forward": (("true", "false"), ""),
    "activation_checkpointing": (("true", "false"), ""),
}
"""Options with few values, and why others are refused."""
_OPTIONS = (*_VALUES, "auto_wrap_policy", "transformer_layer_cls_to_wrap")
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


def refuse_under_fsdp(objectives: Iterable[Objective], labels: LabellerConfig | None) -> None:
    """Refuse, under FSDP, objectives and online labels that read the student's weights where they are not gathered."""
    for one in objectives:
        if one.outside_forward:
            raise CoCoMixError(
                f"auxiliary.{one.name} uses the model's embedding or head outside its forward pass, where FSDP holds "
                "only a shard of them; train under DDP, or leave it out (of nextlat: kl)."
            )
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

    refuse_under_fsdp(objectives, None)
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    # FSDP warns of changing in place what units return, which neither we nor transformers' decoders do.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)


def _of_launcher(environment: Mapping[str, str]) -> dict[str, Any]:
    """The options of accelerate's launcher that ask for something."""
    names = {"transformer_layer_cls_to_wrap": "TRANSFORMER_CLS_TO_WRAP"}
    found = {name: environment.get(f"FSDP_{names.get(name, name.upper())}") for name in (*_OPTIONS, "offload_params")}
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
        values, reason = _VALUES.get(name, ((), ""))
        if values and str(value).lower() not in map(str.lower, values):
            remedy = "; ".join(filter(None, (reason, f"use {' or '.join(values)}")))
            raise CoCoMixError(f"{where}{name} is {value!r}: {remedy}.")
        if name not in _OPTIONS and str(value).lower() != "false":
            raise CoCoMixError(f"{where}{name} is not supported; remove it (these are: {', '.join(_OPTIONS)}).")


def check_deepspeed(training: Mapping[str, Any], environment: Mapping[str, str], has_accelerator: bool) -> None:
    """Refuse a wish for DeepSpeed, in a recipe's `training` or the process's environment, that would not come true.

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
    stage: Any = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if asked:
        zero = _mapping(asked, "training.deepspeed").get("zero_optimization")
        stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    if str(stage) == "3":
        raise CoCoMixError(
            f"{who} asks for ZeRO-3, which is not tested with our heads: these finish their gradients in the forward "
            "pass; set training.fsdp: true, which shards the same, or use ZeRO-2."
        )
