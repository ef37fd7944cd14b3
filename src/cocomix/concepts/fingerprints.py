"""Hashes of a language model: of what determines its numbers, and of the rest of its configuration.

The first is what labels are refused by. It covers the bytes of the parameters and those settings that change a number
without being in the weights. Names of parameters, token ids, class labels, storage and versions do not count, so that a
change of them alone, such as an upgrade of transformers, leaves it as it is.
"""

import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocomix.artifacts import file_sha256, fingerprint_json, tensor_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A configuration entry changes the numbers if its name holds one of these words: `layer_norm_epsilon`, `hidden_act`,
# `num_attention_heads`, `rope_parameters`, `sliding_window`, `layer_types` … An entry of a new architecture that is
# missing here is still seen by `configuration_fingerprint`, of which a change is told.
# fmt: off
_COMPUTING_WORDS = frozenset({
    "act", "activation", "alibi", "before", "bidirectional", "causal", "clip", "eps",
    "epsilon", "experts", "head", "heads", "limit", "multiplier", "parallel", "rope",
    "rotary", "scalar", "scale", "scaling", "softcap", "softcapping", "swiglu", "theta",
    "topk", "type", "types", "window",
})
# fmt: on
_NOT_COMPUTING = ("problem_type", "summary_activation", "summary_type", "lm_head_bias", "type_vocab_size")
# How a model was stored or is run.
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")


def model_fingerprint(model: "PreTrainedModel") -> str:
    """SHA-256 (hex) of computing settings and of every parameter's bytes, in the model's order, tied ones once.

    Where the model was loaded from does not count; a weight that differs in one bit, or in dtype, does.
    """
    digest = hashlib.sha256(fingerprint_json(_settings(model, computing=True)).encode())
    for parameter in model.parameters():
        digest.update(tensor_sha256(parameter).encode())
    return digest.hexdigest()


def configuration_fingerprint(model: "PreTrainedModel") -> str:
    """SHA-256 (hex) of the settings that `model_fingerprint` leaves out."""
    return fingerprint_json(_settings(model, computing=False))


def files_fingerprint(model: str) -> str | None:
    """SHA-256 (hex) of the files of a model on this machine, a GGUF file or a folder; None of a hub name.

    Equal files hold equal weights and settings, which is known by this without loading them. Of a folder it covers what
    transformers reads: the JSON and safetensors files in it, not those in folders below.
    """
    place = Path(model)
    if place.is_file():
        return file_sha256(place)
    files = sorted(path for path in place.glob("*") if path.suffix in (".json", ".safetensors") and path.is_file())
    return fingerprint_json({path.name: file_sha256(path) for path in files}) if files else None


def has_other_weights(model: str, files: str | None, weights: str, load: Callable[[], "PreTrainedModel"]) -> bool:
    """Whether a model's folder or file holds other weights now than when their fingerprint was `weights`.

    It is loaded where its files no longer have the hash `files` (`files_fingerprint`). What is not on this machine, or
    has none noted, counts as unchanged.
    """
    return files is not None and files_fingerprint(model) not in (None, files) and model_fingerprint(load()) != weights


def determining(fingerprint: Mapping[str, str]) -> dict[str, str]:
    """The parts of a labeller's fingerprint that determine the labels; the others are recorded for people."""
    return {name: value for name, value in fingerprint.items() if name not in ("configuration", "versions")}


def package_versions() -> str:
    """Of the packages that compute, for people: `torch 2.13.0, transformers 5.23.0`."""
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))


def _settings(model: "PreTrainedModel", *, computing: bool) -> dict[str, Any]:
    """Settings that differ from their class's defaults, those that change a number or the others."""
    settings = model.config.get_text_config().to_diff_dict()
    return {
        name: value
        for name, value in settings.items()
        if name not in _VOLATILE
        and value is not None
        and (name not in _NOT_COMPUTING and not _COMPUTING_WORDS.isdisjoint(name.split("_"))) is computing
    }
