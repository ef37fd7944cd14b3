"""OpenAI's autoencoder files: read without running anything, and the same latents here and in SAELens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cocomix.concepts import ConceptDictionary
from cocomix.interop import read_openai_autoencoder
from cocomix.runtime.errors import CoCoMixError
from tests.command_line import Cli
from tests.golden import golden_files, read_golden
from tests.test_safety import plant

D_IN, D_SAE, K = 16, 40, 5


def autoencoder(**changes: Any) -> dict[str, Any]:
    """A state dict as theirs are saved; `None` takes an entry out."""
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "pre_bias": torch.randn(D_IN, generator=generator),
        "latent_bias": torch.randn(D_SAE, generator=generator),
        "encoder.weight": torch.randn(D_SAE, D_IN, generator=generator),
        "decoder.weight": torch.randn(D_IN, D_SAE, generator=generator),
        "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long),
        "activation": "TopK",
        "activation_state_dict": {"k": K, "postact_fn": "ReLU"},
    }
    return {name: value for name, value in (values | changes).items() if value is not None}


def naive_latents(values: dict[str, Any], hidden: Tensor) -> Tensor:
    """Position by position, as their model computes them."""
    rows = []
    for h in hidden.flatten(0, -2):
        if values["activation"] == "TopK":
            h = (h - h.mean()) / (h.std() + 1e-5)
        pre = values["encoder.weight"] @ (h - values["pre_bias"]) + values["latent_bias"]
        if values["activation"] == "TopK":
            pre = torch.where(pre >= pre.sort(descending=True).values[K - 1], pre, 0.0)
        rows.append(pre.relu())
    return torch.stack(rows).view(*hidden.shape[:-1], D_SAE)


def saved(folder: Path, values: Any) -> Path:
    torch.save(values, folder / "autoencoder.pt")
    return folder / "autoencoder.pt"


HIDDEN = 3.0 * torch.randn(2, 7, D_IN, generator=torch.Generator().manual_seed(1)) + 1.0


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
@pytest.mark.parametrize("tied", [False, True])
def test_latents_and_reconstruction(tmp_path: Path, activation: str, tied: bool) -> None:
    changes = {"decoder.weight": None, "decoder.linear.weight": autoencoder()["encoder.weight"]} if tied else {}
    if activation == "ReLU":
        changes |= {"activation_state_dict": None}
    values = autoencoder(activation=activation, **changes)
    dictionary = read_openai_autoencoder(saved(tmp_path, values))
    expected = naive_latents(values, HIDDEN)
    torch.testing.assert_close(dictionary.latents(HIDDEN), expected, rtol=1e-5, atol=1e-5)
    decoder = values["encoder.weight"].T if tied else values["decoder.weight"]
    decoded = expected @ decoder.T + values["pre_bias"]
    if activation == "TopK":
        decoded = decoded * HIDDEN.std(-1, keepdim=True) + HIDDEN.mean(-1, keepdim=True)
    torch.testing.assert_close(dictionary.reconstruct(HIDDEN), decoded, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", golden_files("attribution"))
def test_the_released_codes_latents(path: Path, tmp_path: Path) -> None:
    meta, golden = read_golden(path)
    values: dict[str, Any] = {name.removeprefix("sae."): t for name, t in golden.items() if name.startswith("sae.")}
    values |= {"activation": "TopK", "activation_state_dict": {"k": meta["sae_k"], "postact_fn": "ReLU"}}
    dictionary = read_openai_autoencoder(saved(tmp_path, values))
    latents = dictionary.latents(golden["hidden_states"])
    torch.testing.assert_close(latents, golden["latents"].view_as(latents), rtol=1e-5, atol=1e-5)


def test_converted_once_it_is_a_sae_lens_folder(cli: Cli, tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    file = saved(tmp_path, autoencoder())
    cli("import", file, "-o", tmp_path / "sae")
    assert {path.name for path in (tmp_path / "sae").iterdir()} == {
        "cfg.json",
        "manifest.json",
        "sae_weights.safetensors",
    }
    original = read_openai_autoencoder(file)
    converted = ConceptDictionary.from_sae_lens(tmp_path / "sae")
    assert converted.fingerprint() == original.fingerprint()
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    torch.testing.assert_close(theirs.encode(HIDDEN), original.latents(HIDDEN), rtol=1e-5, atol=1e-5)
    with pytest.raises(CoCoMixError, match="cocomix import"):
        ConceptDictionary.from_sae_lens(file)


def test_a_file_with_code_is_not_run(cli: Cli, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    plant(tmp_path / "sae.pt", marker)
    cli.refuses("import", tmp_path / "sae.pt", "-o", tmp_path / "out", says="which would run code")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (autoencoder(**{"encoder.weight": None}), "has no tensor encoder.weight"),
        (autoencoder(latent_bias="text"), "has no tensor latent_bias"),
        (autoencoder(**{"decoder.weight": torch.zeros(D_IN, D_SAE - 1)}), "is no whole autoencoder: W_dec has shape"),
        (autoencoder(pre_bias=torch.zeros(D_IN + 1)), "is no whole autoencoder: b_dec has shape"),
        (autoencoder(activation="Gated"), "has the activation 'Gated'"),
        (autoencoder(activation_state_dict={"k": 3, "postact_fn": "Identity"}), "known is a whole number with 'ReLU'"),
        (autoencoder(activation_state_dict=None), "TopK with k = None"),
        (autoencoder(activation_state_dict={"k": 99}), "k must be between 1 and the 40"),
        ([torch.zeros(2)], "holds a list and no dictionary"),
    ],
)
def test_malformed_files(tmp_path: Path, values: Any, says: str) -> None:
    with pytest.raises(CoCoMixError, match=says):
        read_openai_autoencoder(saved(tmp_path, values))


def test_a_damaged_or_missing_file(tmp_path: Path) -> None:
    file = saved(tmp_path, autoencoder())
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(CoCoMixError, match="damaged"):
        read_openai_autoencoder(file)
    with pytest.raises(CoCoMixError, match="does not exist"):
        read_openai_autoencoder(tmp_path / "none.pt")
