"""SAELens' autoencoders: found in a folder, on the hub or in SAELens' registry; read and written without SAELens.

The registry is a YAML file of the `sae-lens` package, which is imported only for releases in another format than
SAELens' own (Gemma Scope, Llama Scope …). That is `cfg.json` and `sae_weights.safetensors`. Since version 6, notes
about the training, such as the hook's name, lie in `metadata`; before, all fields lie side by side, and what is missing
has the defaults of that time.

Of the notes only the hook's name is a reason to refuse (see `block_of_hook`). `prepend_bos` explains a bad fit, but
refuses no good one: SAELens writes true for older configurations that say nothing, and for Qwen's models, which have no
such token.
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from huggingface_hub import hf_hub_download
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cocomix.artifacts import MANIFEST, url_of, write_text
from cocomix.concepts.dictionary_folder import Dictionary
from cocomix.runtime.errors import CoCoMixError, require_extra

if TYPE_CHECKING:
    from cocomix.concepts.dictionary import ConceptDictionary, Normalization

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

_NORMALIZATIONS: "dict[str, Normalization]" = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
"""SAELens' `normalize_activations` and our names; `centre` is said otherwise, see `_normalization`."""
_ARCHITECTURES = ("topk", "jumprelu", "standard")
_NOTES = ("hook_name", "hook_name_out", "prepend_bos", "model_from_pretrained_kwargs")
# `blocks.5.hook_resid_post` (TransformerLens), `transformer.h.5`, `model.layers.5` (modules of a Hugging Face model)
_HOOK = re.compile(r"^(?:.*\.)?(?:blocks|block|h|layers|layer)\.(\d+)(?:\.(.+))?$")
_OUTPUT = (None, "hook_resid_post", "hook_out", "output")
_INPUT = ("hook_resid_pre", "hook_in", "input")
_HUB = re.compile(
    r"^hf://(?!datasets/|spaces/)(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<folder>.+?))?/?$"
)


def import_sae_lens() -> Any:
    """The `sae_lens` module, an optional dependency."""
    require_extra("sae", "sae_lens", purpose="fitting a dictionary, or a release in a format of its own,")
    import sae_lens

    return sae_lens


def open_sae(place: str, sae_id: str | None = None) -> dict[str, Any]:
    """What `ConceptDictionary.from_sae_lens`, which tells of arguments and errors, makes a dictionary of."""
    name = place if sae_id is None else f"{place}/{sae_id}"
    if place.endswith(".pt"):
        raise CoCoMixError(f"{place} is not read as it is; convert it once: cocomix import {place} -o FOLDER.")
    if (hub := _HUB.match(place)) is not None:
        folder = "/".join(filter(None, (hub["folder"], sae_id)))
        files = _from_hub(hub["repository"], folder, name, hub["revision"])
    elif sae_id is None:
        files = _in_folder(place)
    elif (release := _registry().get(place)) is not None:
        return _open_release(release, place, sae_id, name)
    elif "/" in place:
        files = _from_hub(place, sae_id, name)
    else:
        raise CoCoMixError(
            f"there is no release {place!r}: SAELens' registry is in its package (pip install 'cocomix[sae]'); or name "
            "the repository: hf://OWNER/REPOSITORY/FOLDER."
        )
    return read_sae(*files, name)


def _in_folder(place: str) -> tuple[Path, Path]:
    """The two files of a folder here, or of a dictionary that cocomix wrote, wherever it is; its hashes are checked."""
    if url_of(place) is not None or (Path(place) / MANIFEST).is_file():
        folder = Dictionary.open(place)
        return folder.file(CONFIG), folder.file(WEIGHTS)
    if not Path(place).is_dir():
        raise CoCoMixError(
            f"there is no dictionary at {place}: it is no folder; to take one of a SAELens release, also give its "
            "sae_id (--sae-id)."
        )
    return Path(place) / CONFIG, Path(place) / WEIGHTS


def _from_hub(repository: str, folder: str, name: str, revision: str | None = None) -> tuple[Path, Path]:
    """The two files of a folder in a repository of the Hugging Face Hub, downloaded into its cache."""
    prefix = "" if folder in ("", ".") else f"{folder.rstrip('/')}/"
    try:
        config, weights = (hf_hub_download(repository, prefix + file, revision=revision) for file in (CONFIG, WEIGHTS))
    except Exception as error:  # the hub client raises errors of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CoCoMixError(
            f"the hub gives no SAELens autoencoder {name} ({reason.rstrip('.')}); check the repository, its folder "
            "and the network."
        ) from error
    return Path(config), Path(weights)


def _registry() -> dict[str, Any]:
    """SAELens' releases by name; empty where the package is not installed."""
    package = importlib.util.find_spec("sae_lens")  # does not import it
    if package is None or package.origin is None:
        return {}
    text = (Path(package.origin).parent / "pretrained_saes.yaml").read_text(encoding="utf-8")
    # Both loaders are safe; the one in C takes a second for the 14,000 entries, Python's ten.
    releases: dict[str, Any] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    return releases


def _open_release(release: Mapping[str, Any], place: str, sae_id: str, name: str) -> dict[str, Any]:
    entry = next((each for each in release["saes"] if each["id"] == sae_id), None)
    if entry is None:
        known = ", ".join(str(each["id"]) for each in release["saes"][:5])
        raise CoCoMixError(f"the SAELens release {place} has no SAE {sae_id!r}, but {known} …; give one of its ids.")
    if release.get("conversion_func") is None:
        files = _from_hub(release["repo_id"], str(entry["path"]), name)
        return read_sae(*files, name, release.get("config_overrides"), entry.get("norm_scaling_factor"))
    lens = import_sae_lens()
    try:
        sae = lens.SAE.from_pretrained(place, sae_id, device="cpu", dtype="float32")
    except Exception as error:  # the hub client and each format's loader raise errors of many kinds
        raise CoCoMixError(f"SAELens cannot load {name}: {str(error).strip() or type(error).__name__}.") from error
    config = SaeConfig.model_validate(sae.cfg.to_dict())
    return dictionary_of(config, {key: tensor.detach() for key, tensor in sae.state_dict().items()}, name)


class SaeConfig(BaseModel):
    """The fields of `cfg.json` that are read, in the form of version 6."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    architecture: str
    d_in: int
    d_sae: int
    k: int | None = None
    rescale_acts_by_decoder_norm: bool = False
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    activation_fn: str | None = None
    metadata: dict[str, Any] = {}


def read_sae(
    config: Path, weights: Path, name: str, overrides: Mapping[str, Any] | None = None, scale: float | None = None
) -> dict[str, Any]:
    """Read the two files of an autoencoder, in float32 on the CPU, as arguments of `ConceptDictionary`.

    The registry of releases may set fields in place of the file's (`overrides`), and a `scale`, see `dictionary_of`.
    """
    settings = _read_config(config, name, overrides)
    try:
        tensors = {key: tensor.to(torch.float32) for key, tensor in load_file(weights).items()}
    except (OSError, SafetensorError) as error:
        raise CoCoMixError(f"the weights of {name} cannot be read: {error}; save or download them again.") from error
    return dictionary_of(settings, tensors, name, scale)


def _read_config(path: Path, name: str, overrides: Mapping[str, Any] | None) -> SaeConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        notes = values.get("metadata") or {}
        version = values.get("sae_lens_version") or notes.get("sae_lens_version") or "0"
        values |= overrides or {}
        if int(str(version).split(".")[0]) < 6:
            return SaeConfig.model_validate(_before_version_6(values))
        values["metadata"] = {**notes, **{key: value for key, value in (overrides or {}).items() if key in _NOTES}}
        return SaeConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise CoCoMixError(f"{name} cannot be read: {field} in its {CONFIG}: {first['msg']}.") from error
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        reason = f"has no {CONFIG}" if isinstance(error, FileNotFoundError) else f"cannot be read: {CONFIG}: {error}"
        raise CoCoMixError(f"{name} {reason}; give the folder of an autoencoder that SAELens saved.") from error


def _before_version_6(values: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration in the form of version 6, with the defaults that SAELens gives it."""
    renamed = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    config: dict[str, Any] = {"architecture": "standard", "prepend_bos": True}
    config |= {renamed.get(key, key): value for key, value in values.items()}
    k = (config.get("activation_fn_kwargs") or {}).get("k")
    if config.get("activation_fn") == "topk" and k is not None:
        config |= {"architecture": "topk", "k": k, "activation_fn": None}
    normalize = config.get("normalize_activations")
    if normalize is None or isinstance(normalize, bool):
        config["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    return {**config, "metadata": {name: config[name] for name in _NOTES if name in config}}


def dictionary_of(
    config: SaeConfig, tensors: Mapping[str, Tensor], name: str, scale: float | None = None
) -> dict[str, Any]:
    """The dictionary that an autoencoder of SAELens' is, as arguments of `ConceptDictionary`.

    `tensors` are float32, by SAELens' names. `scale` is the factor of `expected_average_only_in`, to be folded in.

    Raises:
        CoCoMixError: the architecture is none of TopK, BatchTopK (saved for inference), JumpReLU and ReLU, its place in
            the model is not the output of a block, its input is scaled in a way that cannot be reproduced, or tensors
            are missing.
    """
    if config.architecture not in _ARCHITECTURES or config.activation_fn not in (None, "relu"):
        what = config.architecture if config.activation_fn in (None, "relu") else config.activation_fn
        raise CoCoMixError(
            f"{name} is a SAELens SAE of architecture {what!r}; known are topk, jumprelu (BatchTopK is saved as such) "
            "and standard (ReLU)."
        )
    layer = block_of_hook(config.metadata.get("hook_name"), name, config.metadata.get("hook_name_out"))
    if config.reshape_activations != "none":
        raise CoCoMixError(
            f"{name} reads attention heads (hook_z), not the output of a block; choose a residual-stream SAE."
        )
    weights = _known_tensors(config, tensors, name)
    if scale is not None and config.normalize_activations == "expected_average_only_in":
        config = config.model_copy(update={"normalize_activations": "none"})
        weights["W_enc"] = weights["W_enc"] * scale
        weights |= {key: weights[key] / scale for key in ("W_dec", "b_dec")}
    if config.architecture == "topk" and config.rescale_acts_by_decoder_norm:
        # SAELens ranks pre · ‖W_dec row‖ and divides again when decoding: the same as unit rows and a scaled encoder.
        norms = weights["W_dec"].norm(dim=-1).clamp(min=1e-8)
        weights |= {key: weights[key] * norms for key in ("W_enc", "b_enc")}
        weights["W_dec"] = weights["W_dec"] / norms[:, None]
    return {
        **weights,
        "k": config.k if config.architecture == "topk" else None,
        "normalize": _normalization(config, name),
        "subtract_b_dec": config.apply_b_dec_to_input,
        "name": name,
        "prepend_bos": config.metadata.get("prepend_bos"),
        "layer": layer,
    }


def block_of_hook(hook_name: str | None, name: str, hook_name_out: str | None = None) -> int | None:
    """The 0-based block whose output an autoencoder reads; None where its configuration does not say.

    The input of block N is the output of block N − 1. Transcoders, whose `hook_name_out` is another, are refused.
    """
    if hook_name_out not in (None, hook_name):
        raise CoCoMixError(
            f"{name} is a transcoder from {hook_name} to {hook_name_out}; a dictionary must read and rebuild the same."
        )
    found = _HOOK.match(hook_name or "")
    if found is None:
        return None
    block, place = int(found[1]), found[2]
    if place in _OUTPUT:
        return block
    if place in _INPUT and block > 0:
        return block - 1
    what = "the embeddings" if place in _INPUT else "not the output of a block"
    raise CoCoMixError(
        f"{name} was trained on {hook_name}, which is {what}; choose an SAE of the residual stream after a block "
        "(hook_resid_post)."
    )


def _known_tensors(config: SaeConfig, tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of the architecture; refuses missing ones, and others, which would take part in the computation."""
    found = dict(tensors)
    if "log_threshold" in found:  # JumpReLU checkpoints of older versions
        found["threshold"] = found.pop("log_threshold").exp()
    if "scaling_factor" in found and torch.allclose(found["scaling_factor"], torch.ones(())):
        del found["scaling_factor"]  # written by versions that never used it
    wanted = {"W_enc", "b_enc", "W_dec", "b_dec"} | ({"threshold"} if config.architecture == "jumprelu" else set())
    if found.keys() != wanted or (config.architecture == "topk" and config.k is None):
        missing = ", ".join(sorted(wanted - found.keys())) or "nothing"
        extra = ", ".join(sorted(found.keys() - wanted)) or "nothing"
        raise CoCoMixError(
            f"{name} is not a complete SAE of architecture {config.architecture!r} (k {config.k}): {missing} is "
            f"missing from its weights, and {extra} is unknown; save it again with save_inference_model."
        )
    if tuple(found["W_enc"].shape) != (config.d_in, config.d_sae):
        raise CoCoMixError(
            f"W_enc of {name} has shape {list(found['W_enc'].shape)}, but its {CONFIG} says d_in {config.d_in} and "
            f"d_sae {config.d_sae}; save it again."
        )
    return found


def _normalization(config: SaeConfig, name: str) -> "Normalization":
    """How the input is normalised.

    Some were trained on models whose writing weights TransformerLens had centred: then every hidden state has the mean
    0 over its width. That of the model as it is becomes so by subtracting its mean, which `centre` does.
    """
    if config.normalize_activations not in _NORMALIZATIONS:
        raise CoCoMixError(
            f"{name} scales its input by {config.normalize_activations!r} and the scale is not folded into its "
            "weights; fold it with SAELens (fold_activation_norm_scaling_factor) and save it again."
        )
    normalize = _NORMALIZATIONS[config.normalize_activations]
    loading = config.metadata.get("model_from_pretrained_kwargs") or {}
    if not loading.get("center_writing_weights") or normalize == "layer_norm":  # which centres, too
        return normalize
    if normalize != "none":
        raise CoCoMixError(
            f"{name} is of a model with center_writing_weights and {normalize!r}, which is not known; take an "
            "autoencoder without one of the two."
        )
    return "centre"


def write_sae(dictionary: "ConceptDictionary", folder: Path) -> None:
    """Write an autoencoder as SAELens saves one for inference; files in the folder are written over."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, Any] = {"sae_lens_version": "6.0.0"}  # the version of the format
    if dictionary.prepend_bos is not None:
        metadata["prepend_bos"] = dictionary.prepend_bos
    if dictionary.layer is not None:
        metadata["hook_name"] = f"blocks.{dictionary.layer}.hook_resid_post"
    if dictionary.normalize == "centre":
        metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    theirs = {ours: name for name, ours in _NORMALIZATIONS.items()}
    config: dict[str, Any] = {
        "architecture": "standard" if dictionary.kind == "relu" else dictionary.kind,
        "d_in": dictionary.d_model,
        "d_sae": dictionary.n_concepts,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.subtract_b_dec,
        "normalize_activations": theirs.get(dictionary.normalize, "none"),
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if dictionary.k is not None:
        # With unit rows the setting changes no number, and dashboards, which fold the norms, ask for it.
        unit = bool((dictionary.W_dec.norm(dim=-1) - 1.0).abs().max() < 1e-6)
        config |= {"k": dictionary.k, "rescale_acts_by_decoder_norm": unit}
    tensors = {name: tensor.float().cpu().contiguous() for name, tensor in dictionary.tensors().items()}
    save_file(tensors, folder / WEIGHTS)
    write_text(folder / CONFIG, json.dumps(config))
