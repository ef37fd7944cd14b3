"""OpenAI's autoencoder files (`.pt`, openai/sparse_autoencoder), which the released code uses, as dictionaries.

The one place where a file of `torch.save` is read: tensors and plain values, never code.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cocomix.artifacts import file_sha256
from cocomix.concepts import ConceptDictionary, Dictionary, DictionaryManifest
from cocomix.runtime.errors import CoCoMixError


def read_openai_autoencoder(path: Path) -> ConceptDictionary:
    """Read an autoencoder as a dictionary, in float32 on the CPU.

    There x = (h − mean)/(std + 1e-5) − pre_bias with the activation "TopK" and x = h − pre_bias with "ReLU" (the file
    does not say; this is the released loader's rule), and latents = activation(encoder·x + latent_bias).

    Args:
        path: a `.pt` file with `pre_bias` [d_model], `latent_bias` [n_concepts], `encoder.weight` [n_concepts, d_model]
            and `decoder.weight` [d_model, n_concepts] (or none, where it is the encoder's transposed).

    Raises:
        CoCoMixError: the file cannot be read (see `load_weights_only`), lacks a tensor, has one of another shape, or an
            activation that is neither TopK with ReLU nor ReLU.
    """
    values = load_weights_only(path)
    weights = {name: _tensor(values, name, path) for name in ("pre_bias", "latent_bias", "encoder.weight")}
    encoder = weights["encoder.weight"]
    decoder = encoder.T if "decoder.linear.weight" in values else _tensor(values, "decoder.weight", path)
    activation, k = values.get("activation", "ReLU"), None
    if activation == "TopK":
        state = values.get("activation_state_dict")
        k, after = (state.get("k"), state.get("postact_fn", "ReLU")) if isinstance(state, dict) else (None, None)
        if not isinstance(k, int) or after != "ReLU":
            raise CoCoMixError(
                f"{path} has TopK with k = {k!r} and {after!r} after it; known is a whole number with 'ReLU'."
            )
    elif activation != "ReLU":
        raise CoCoMixError(f"{path} has the activation {activation!r}; known are TopK and ReLU.")
    try:
        return ConceptDictionary(
            encoder.T,
            weights["latent_bias"],
            decoder.T,
            weights["pre_bias"],
            k=k,
            normalize="none" if k is None else "layer_norm",
            name=str(path),
        )
    except CoCoMixError as error:
        raise CoCoMixError(f"{path} is no whole autoencoder: {error}") from None


def convert_autoencoder(path: Path, output: Path) -> ConceptDictionary:
    """Write an autoencoder file of OpenAI's as a SAELens folder: safetensors, with the normalisation it needs.

    Errors are those of `read_openai_autoencoder`, and of an `output` that exists.
    """
    dictionary = read_openai_autoencoder(path)
    concepts, fingerprint = dictionary.n_concepts, dictionary.fingerprint()
    with Dictionary.create(output, identity={"file": file_sha256(path)}) as staging:
        dictionary.save(staging.path)
        staging.finish(DictionaryManifest(num_concepts=concepts, dictionary_fingerprint=fingerprint))
    return dictionary


def _tensor(values: dict[str, Any], name: str, path: Path) -> Tensor:
    tensor = values.get(name)
    if not isinstance(tensor, Tensor):
        raise CoCoMixError(
            f"{path} has no tensor {name}, so it is not an autoencoder of OpenAI's form; give one of its .pt files."
        )
    return tensor.detach().to(torch.float32)


def load_weights_only(path: Path) -> dict[str, Any]:
    """Read a dictionary of tensors and plain values that someone else saved with `torch.save`.

    PyTorch's restricted unpickler builds tensors, numbers, texts, lists and dictionaries and refuses everything else
    before it is run.
    """
    if not path.is_file():
        raise CoCoMixError(f"{path} does not exist; give a file that torch.save wrote.")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - see the module's docstring
    except Exception as error:  # the unpickler and the archive reader raise errors of many kinds
        code = "Unsupported" in str(error) or "GLOBAL" in str(error)
        reason = "it holds objects that are no tensors, which would run code" if code else "it is damaged"
        raise CoCoMixError(f"{path} is not loaded: {reason}; use a file of plain tensors.") from error
    if not isinstance(value, dict):
        raise CoCoMixError(f"{path} holds a {type(value).__name__} and no dictionary of tensors; use a state dict.")
    return value
