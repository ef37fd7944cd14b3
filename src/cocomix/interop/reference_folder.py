"""`cocomix import`: checkpoint folders of the released code, read as its trainer saves them, and written for it.

There `logs/…/config.yaml` holds the run's settings, and `logs/…/step_10000` or `logs/…/last` a model that transformers
4.44 saved: a GPT-2 `config.json` that knows nothing of concepts, `model.safetensors` (or its shards), and the
optimizer's pickles, which are not read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cocomix.artifacts import read_json, whole_folder, write_json, write_text
from cocomix.data.tokenizer import vocabulary_size
from cocomix.interop.reference import from_reference_state_dict, to_reference_state_dict
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_causal_lm, load_tokenizer
from cocomix.runtime.yaml_text import dump_yaml, parse_yaml
from cocomix.training.auto_classes import write_auto_classes

_GPT2_FIELDS = (
    *("activation_function", "attn_pdrop", "bos_token_id", "embd_pdrop", "eos_token_id", "initializer_range"),
    *("layer_norm_epsilon", "n_inner", "reorder_and_upcast_attn", "resid_pdrop", "scale_attn_by_inverse_layer_idx"),
    "scale_attn_weights",
)
"""Fields of an old GPT-2 `config.json` that say what the model computes, beside its sizes."""


@dataclass(frozen=True)
class ConceptSettings:
    """What `config.yaml` says of the concepts; `None` where it is to be read from there.

    Attributes:
        insert_layer: `insert_layer_index`.
        concept_topk: `concept_num`.
        concept_loss_weight: `lam_concept`.
    """

    insert_layer: int | None = None
    concept_topk: int | None = None
    concept_loss_weight: float | None = None


def read_reference_folder(folder: Path, given: ConceptSettings | None = None) -> CoCoMixForCausalLM:
    """Read a checkpoint of the released code as a float32 model in evaluation mode.

    Args:
        folder: with `config.json` and safetensors; `config.yaml` in it or in the folder above, as there.
        given: settings that override `config.yaml`; without that file they must be complete but for λ (0.1).

    Raises:
        CoCoMixError: a file is missing or damaged, or its contents are not the released code's.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise CoCoMixError(
            f"{folder} has no config.json, so it is not a checkpoint of the released code; give its step_… or last "
            "folder."
        )
    values = read_json(config)
    if not isinstance(values, dict) or values.get("model_type") != "gpt2":
        raise CoCoMixError(f"{config} is not a GPT-2's, and the released code has no other; give a checkpoint of its.")
    settings = _settings(folder, given or ConceptSettings())
    tensors = _weights(folder)
    heads = values.get("n_head")
    if not isinstance(heads, int):
        raise CoCoMixError(f"{config} has n_head = {heads!r}, which should be a whole number; the file is damaged.")
    try:
        model = from_reference_state_dict(
            tensors,
            num_heads=heads,
            gpt2_settings={name: values[name] for name in _GPT2_FIELDS if name in values},
            **settings,
        )
    except (CoCoMixError, KeyError, TypeError, ValueError) as error:  # what `GPT2Config` makes of strange values
        raise CoCoMixError(f"{folder}: {str(error).splitlines()[0]}") from error
    if any(values.get(name, size) != size for name, size in _sizes(model).items()):
        raise CoCoMixError(f"{config} and the tensors beside it disagree about the sizes; the folder is damaged.")
    return model


def write_reference_folder(model: CoCoMixForCausalLM, folder: Path) -> None:
    """Write a checkpoint that the released code loads: `config.json`, `model.safetensors` and `config.yaml`.

    Into a folder that exists, over what is there. Models are refused as by `to_reference_state_dict`.
    """
    tensors = to_reference_state_dict(model)
    backbone = model.config.backbone
    config = {
        "architectures": ["GPT2CoCoMixLMHeadModel"],
        "model_type": "gpt2",
        **{name: getattr(backbone, name) for name in _GPT2_FIELDS},
        **_sizes(model),
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        "use_cache": True,
    }
    write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "mode": "cocomix",
        "base_model": "openai-community/gpt2",
        "concept_dim": model.config.num_concepts,
        "concept_num": model.config.concept_topk,
        "insert_layer_index": model.config.insert_layer,
        "lam_concept": model.config.concept_loss_weight,
    }
    write_text(folder / "config.yaml", dump_yaml(settings))


def import_released(
    folder: Path, output: Path, given: ConceptSettings | None = None, tokenizer: str | None = None
) -> CoCoMixForCausalLM:
    """Write a checkpoint of the released code, as `read_reference_folder` takes it, for `from_pretrained` to load.

    Refused as there; and where the tokenizer has more tokens than the model, or `output` exists.

    Args:
        tokenizer: folder or hub name of the tokenizer to put beside it; the released code's is openai-community/gpt2.
    """
    model = read_reference_folder(folder, given)
    with whole_folder(output) as target:
        if tokenizer is not None:
            loaded = load_tokenizer(tokenizer)
            if (size := vocabulary_size(loaded)) > model.config.vocab_size:
                raise CoCoMixError(
                    f"the tokenizer {tokenizer} has {size:,} tokens and the model in {folder} "
                    f"{model.config.vocab_size:,}; give the one it was trained with."
                )
            loaded.save_pretrained(target)
        model.save_pretrained(target)
        write_auto_classes(target)
    return model


def export_to_released(source: Path, output: Path) -> CoCoMixForCausalLM:
    """Write a run, or a model folder, as a checkpoint that the released code loads; others than it has are refused."""
    model = load_causal_lm(source)
    if not isinstance(model, CoCoMixForCausalLM):
        raise CoCoMixError(
            f"{source} holds a plain {model.config.model_type}, which transformers loads as it is; export a "
            "run with concepts."
        )
    with whole_folder(output) as target:
        write_reference_folder(model, target)
    return model


def _sizes(model: CoCoMixForCausalLM) -> dict[str, int]:
    backbone = model.config.backbone
    return {name: getattr(backbone, name) for name in ("n_embd", "n_head", "n_layer", "n_positions", "vocab_size")}


def _settings(folder: Path, given: ConceptSettings) -> dict[str, Any]:
    """The keyword arguments of `from_reference_state_dict` that say what the concepts are like."""
    files = [path for path in (folder / "config.yaml", folder.absolute().parent / "config.yaml") if path.is_file()]
    written = parse_yaml(files[0].read_text(encoding="utf-8"), str(files[0])) if files else {}
    if not isinstance(written, dict):
        raise CoCoMixError(f"{files[0]} is not the released code's: it must hold settings by name.")
    values = {"lam_concept": 0.1, **written}
    found = {}
    for setting, name, kind in (
        ("insert_layer", "insert_layer_index", int),
        ("concept_topk", "concept_num", int),
        ("concept_loss_weight", "lam_concept", int | float),
    ):
        value = values.get(name) if getattr(given, setting) is None else getattr(given, setting)
        if not isinstance(value, kind):
            remedy = f"give --{setting.replace('_', '-')}" if kind is int else "correct it there"
            known = "not given" if value is None else repr(value)
            raise CoCoMixError(
                f"{name} in config.yaml is {known} and should be a number (looked for in {folder} and above it); "
                f"{remedy}."
            )
        found[setting] = value
    return found


def _weights(folder: Path) -> dict[str, Tensor]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    names = ["model.safetensors"]
    if index.is_file() and not single.is_file():
        shards = read_json(index)
        names = sorted(set(shards.get("weight_map", {}).values())) if isinstance(shards, dict) else []
    if not names or any(Path(name).name != name or not (folder / name).is_file() for name in names):
        raise CoCoMixError(
            f"{folder} lacks weights as safetensors ({', '.join(names) or 'the index names none'}), which the released "
            "trainer writes; pickles (pytorch_model.bin) are not read."
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors |= load_file(folder / name)
        except (SafetensorError, json.JSONDecodeError, OSError, ValueError) as error:
            raise CoCoMixError(f"{folder / name} is damaged ({error}); copy it again.") from error
    return tensors
