"""Reading SAEs that SAELens can load.

What determines the numbers is taken off the loaded object: weights, activation, normalisation. SAELens keeps the
normalisation statistics of the last input on its module; our functional form does not.

Of its notes only `prepend_bos` is kept, to explain a bad fit with. It is no reason to refuse a good one: SAELens writes
true for configurations older than its version 6 that say nothing, and for Qwen's models, which have no such token.
"""

from pathlib import Path
from typing import Any

import torch

from cocomix.concepts.dictionary import ConceptDictionary, Normalization
from cocomix.runtime.errors import CoCoMixError

__all__ = ["import_sae_lens", "load_sae_lens", "save_sae_lens"]

_NORMALIZATIONS: dict[str, Normalization] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
"""SAELens' `normalize_activations` and our names."""


def import_sae_lens() -> Any:
    """The `sae_lens` module, an optional dependency.

    Raises:
        CoCoMixError: it is not installed.
    """
    try:
        import sae_lens
    except ImportError as error:
        raise CoCoMixError("sparse autoencoders need SAELens; run: pip install 'cocomix[sae]'.") from error
    return sae_lens


def load_sae_lens(release_or_path: str, sae_id: str | None = None) -> ConceptDictionary:
    """Load an SAE as a dictionary, in float32 on the CPU.

    Args:
        release_or_path: a folder written by SAELens (`save_model`, `save_inference_model`) when `sae_id` is None,
            otherwise a release of its registry or a hub repository.
        sae_id: which SAE of the release, e.g. `blocks.5.hook_resid_post`.

    Raises:
        CoCoMixError: nothing can be loaded from there, the architecture is not one of TopK, BatchTopK (saved for
            inference), JumpReLU and ReLU, or the input is scaled in a way we cannot reproduce.
    """
    lens = import_sae_lens()
    name = release_or_path if sae_id is None else f"{release_or_path}/{sae_id}"
    if release_or_path.endswith(".pt"):
        raise CoCoMixError(
            f"{release_or_path} is not read as it is; convert it once: cocomix import {release_or_path} -o FOLDER."
        )
    if sae_id is None and not Path(release_or_path).is_dir():
        raise CoCoMixError(
            f"{release_or_path} is not a folder with an SAE; to load a SAELens release, also give the id of its SAE."
        )
    try:
        if sae_id is None:
            sae = lens.SAE.load_from_disk(release_or_path, device="cpu", dtype="float32")
        else:
            sae = lens.SAE.from_pretrained(release_or_path, sae_id, device="cpu", dtype="float32")
    except Exception as error:  # a damaged configuration or weights can be wrong in as many ways as they have fields
        raise CoCoMixError(f"SAELens cannot load {name}: {str(error).strip() or type(error).__name__}.") from error
    return from_sae(sae, name)


def from_sae(sae: Any, name: str) -> ConceptDictionary:
    """Take weights and settings off a loaded SAELens inference object; see `load_sae_lens` for the errors."""
    architecture = sae.cfg.architecture()
    if architecture not in ("topk", "jumprelu", "standard"):
        raise CoCoMixError(
            f"{name} is a SAELens SAE of architecture {architecture!r}; known are topk, jumprelu (BatchTopK is saved "
            "as such) and standard (ReLU)."
        )
    normalize = sae.cfg.normalize_activations
    if normalize not in _NORMALIZATIONS:
        raise CoCoMixError(
            f"{name} scales its input by {normalize!r} and the scale is not folded into its weights; fold it with "
            "SAELens (fold_activation_norm_scaling_factor) and save it again."
        )
    if sae.cfg.reshape_activations != "none":
        raise CoCoMixError(
            f"{name} reads attention heads (hook_z), not the output of a block; choose a residual-stream SAE."
        )
    W_enc, b_enc, W_dec = (tensor.detach().to(torch.float32) for tensor in (sae.W_enc, sae.b_enc, sae.W_dec))
    if architecture == "topk" and sae.cfg.rescale_acts_by_decoder_norm:
        # SAELens ranks pre · ‖W_dec row‖ and divides again when decoding: the same as unit rows and a scaled encoder.
        norms = W_dec.norm(dim=-1).clamp(min=1e-8)
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    return ConceptDictionary.from_tensors(
        W_enc,
        b_enc,
        W_dec,
        sae.b_dec.detach().to(torch.float32),
        k=sae.cfg.k if architecture == "topk" else None,
        threshold=sae.threshold.detach().to(torch.float32) if architecture == "jumprelu" else None,
        normalize=_NORMALIZATIONS[normalize],
        subtract_b_dec=bool(sae.cfg.apply_b_dec_to_input),
        name=name,
        prepend_bos=sae.cfg.metadata.get("prepend_bos"),
    )


def save_sae_lens(dictionary: ConceptDictionary, folder: Path) -> None:
    """Write a dictionary as SAELens saves an SAE for inference: `cfg.json` and `sae_weights.safetensors`.

    Args:
        dictionary: its normalisation and its use of b_dec are written too.
        folder: files in it are written over.

    Raises:
        CoCoMixError: SAELens is not installed.
    """
    lens = import_sae_lens()
    kinds = {"topk": lens.TopKSAEConfig, "jumprelu": lens.JumpReLUSAEConfig, "relu": lens.StandardSAEConfig}
    options: dict[str, Any] = {}
    if dictionary.k is not None:
        unit = bool((dictionary.W_dec.norm(dim=-1) - 1.0).abs().max() < 1e-6)
        # With unit rows the setting changes no number, and dashboards, which fold the norms, ask for it.
        options = {"k": dictionary.k, "rescale_acts_by_decoder_norm": unit}
    config = kinds[dictionary.kind](
        d_in=dictionary.d_model,
        d_sae=dictionary.n_concepts,
        normalize_activations=next(name for name, ours in _NORMALIZATIONS.items() if ours == dictionary.normalize),
        apply_b_dec_to_input=dictionary.subtract_b_dec,
        device="cpu",
        **options,
    )
    if dictionary.prepend_bos is not None:
        config.metadata.prepend_bos = dictionary.prepend_bos
    sae = lens.SAE.get_sae_class_for_architecture(config.architecture())(config)
    sae.load_state_dict({name: tensor.cpu() for name, tensor in dictionary.tensors().items()})
    sae.save_model(folder)
