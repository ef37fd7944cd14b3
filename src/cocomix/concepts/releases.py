"""Finding an autoencoder: a folder, a repository of the hub, or a release of SAELens' registry.

The registry is a YAML file of the `sae-lens` package. It is read without importing the package, which is imported only
for releases in another format than SAELens' own (Gemma Scope, Llama Scope …).
"""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download

from cocomix.artifacts import MANIFEST, url_of
from cocomix.concepts.dictionary import ConceptDictionary
from cocomix.concepts.dictionary_folder import Dictionary
from cocomix.concepts.saelens import CONFIG, WEIGHTS, SaeConfig, dictionary_of, read_sae
from cocomix.runtime.errors import CoCoMixError

_HUB = re.compile(
    r"^hf://(?!datasets/|spaces/)(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<folder>.+?))?/?$"
)


def import_sae_lens() -> Any:
    """The `sae_lens` module, an optional dependency."""
    try:
        import sae_lens
    except ImportError as error:
        raise CoCoMixError("this needs SAELens; run: pip install 'cocomix[sae]'.") from error
    return sae_lens


def open_sae(place: str, sae_id: str | None = None) -> ConceptDictionary:
    """Read an autoencoder; arguments and errors are those of `ConceptDictionary.from_sae_lens`."""
    name = place if sae_id is None else f"{place}/{sae_id}"
    if place.endswith(".pt"):
        raise CoCoMixError(f"{place} is not read as it is; convert it once: cocomix import {place} -o FOLDER.")
    if (hub := _HUB.match(place)) is not None:
        folder = "/".join(filter(None, (hub["folder"], sae_id)))
        return read_sae(*_from_hub(hub["repository"], folder, name, hub["revision"]), name)
    if sae_id is None:
        return read_sae(*_in_folder(place), name)
    release = _registry().get(place)
    if release is not None:
        return _open_release(release, place, sae_id, name)
    if "/" in place:
        return read_sae(*_from_hub(place, sae_id, name), name)
    raise CoCoMixError(
        f"there is no release {place!r}: SAELens' registry is in its package (pip install 'cocomix[sae]'); or name the "
        "repository: hf://OWNER/REPOSITORY/FOLDER."
    )


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


def _open_release(release: Mapping[str, Any], place: str, sae_id: str, name: str) -> ConceptDictionary:
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
