"""Where autoencoders are found: folders, repositories of the hub (a fake one), and SAELens' registry."""

import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.utils import EntryNotFoundError

from cocomix.concepts import ConceptDictionary, Dictionary, DictionaryManifest, saelens
from cocomix.runtime.errors import CoCoMixError

from .conftest import D_MODEL, make_dictionary

RELEASES = {
    "centred": {
        "repo_id": "someone/saes",
        "model": "gpt2-small",
        "conversion_func": None,
        "config_overrides": {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
        "saes": [{"id": "blocks.3.hook_resid_pre", "path": "third"}, {"id": "numbered", "path": 3}],
    },
    "scaled": {
        "repo_id": "someone/saes",
        "model": "gpt2-small",
        "conversion_func": None,
        "config_overrides": {"normalize_activations": "expected_average_only_in"},
        "saes": [{"id": "known", "path": "third", "norm_scaling_factor": 2.0}, {"id": "unknown", "path": "third"}],
    },
    "scope": {
        "repo_id": "someone/npz",
        "model": "gemma",
        "conversion_func": "gemma_2",
        "saes": [{"id": "layer_0", "path": "layer_0"}],
    },
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository `someone/saes` with autoencoders in its root and in `third`, and the revisions it was asked for."""
    repository = tmp_path / "hub"
    make_dictionary("relu", normalize="none").save(repository / "third")
    make_dictionary("topk").save(repository)
    asked = []

    def download(repository_id, filename, *, revision=None, **options):
        asked.append(revision)
        path = repository / filename
        if repository_id != "someone/saes" or not path.is_file():
            raise EntryNotFoundError(f"404: {repository_id} {filename}")
        return str(path)

    monkeypatch.setattr(saelens, "hf_hub_download", download)
    return asked


@pytest.fixture
def registry(hub, monkeypatch):
    monkeypatch.setattr(saelens, "_registry", lambda: RELEASES)


def test_a_folder_of_a_repository(hub):
    expected = make_dictionary("relu", normalize="none").fingerprint()
    for place, sae_id in (
        ("hf://someone/saes/third", None),
        ("hf://someone/saes", "third"),
        ("hf://someone/saes@v1/third", None),
        ("someone/saes", "third"),
    ):
        assert ConceptDictionary.from_sae_lens(place, sae_id).fingerprint() == expected
    assert hub == [None, None, None, None, "v1", "v1", None, None]
    assert ConceptDictionary.from_sae_lens("hf://someone/saes").kind == "topk"
    with pytest.raises(CoCoMixError, match="nowhere"):
        ConceptDictionary.from_sae_lens("hf://someone/saes/nowhere")
    with pytest.raises(CoCoMixError, match="nobody/saes"):
        ConceptDictionary.from_sae_lens("nobody/saes", "third")


def test_a_release_with_its_overrides(registry):
    dictionary = ConceptDictionary.from_sae_lens("centred", "blocks.3.hook_resid_pre")
    assert (dictionary.normalize, dictionary.name) == ("centre", "centred/blocks.3.hook_resid_pre")
    with pytest.raises(CoCoMixError, match=r"'blocks\.9'.*blocks\.3\.hook_resid_pre"):
        ConceptDictionary.from_sae_lens("centred", "blocks.9")


def test_a_known_scale_is_folded_and_an_unknown_one_refused(registry):
    plain, scaled = make_dictionary("relu", normalize="none"), ConceptDictionary.from_sae_lens("scaled", "known")
    hidden = torch.randn(5, D_MODEL)
    torch.testing.assert_close(scaled.latents(hidden), plain.latents(2 * hidden), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scaled.reconstruct(hidden), plain.reconstruct(2 * hidden) / 2, rtol=1e-4, atol=1e-5)
    with pytest.raises(CoCoMixError, match="expected_average_only_in"):
        ConceptDictionary.from_sae_lens("scaled", "unknown")


def test_other_formats_and_the_registry_need_the_package(registry, monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(CoCoMixError, match="pip install"):
        ConceptDictionary.from_sae_lens("scope", "layer_0")
    monkeypatch.setattr(saelens, "_registry", dict)
    with pytest.raises(CoCoMixError, match=r"'centred'.*hf://"):
        ConceptDictionary.from_sae_lens("centred", "blocks.3.hook_resid_pre")


def test_the_registry_is_read_without_importing_sae_lens_and_gives_what_sae_lens_gives(hub, monkeypatch):
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.loading import pretrained_sae_loaders, pretrained_saes_directory

    monkeypatch.setattr(
        saelens.importlib.util, "find_spec", lambda name: type("Spec", (), {"origin": sae_lens.__file__})
    )
    text = Path(sae_lens.__file__).with_name("pretrained_saes.yaml").read_text()
    assert saelens._registry() == yaml.load(text, Loader=yaml.CSafeLoader)
    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", lambda **options: saelens.hf_hub_download(
        options["repo_id"], options["filename"]
    ))  # fmt: skip
    directory = pretrained_saes_directory.get_pretrained_saes_directory()
    monkeypatch.setattr(directory["gpt2-small-res-jb"], "repo_id", "someone/saes")
    monkeypatch.setitem(directory["gpt2-small-res-jb"].saes_map, "blocks.3.hook_resid_pre", "third")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sae_lens.SAE.from_pretrained("gpt2-small-res-jb", "blocks.3.hook_resid_pre")
    monkeypatch.setattr(saelens, "_registry", lambda: {"gpt2-small-res-jb": {**RELEASES["centred"]}})
    ours = ConceptDictionary.from_sae_lens("gpt2-small-res-jb", "blocks.3.hook_resid_pre")
    centred = torch.randn(5, D_MODEL)
    centred -= centred.mean(-1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(ours.latents(centred), theirs.encode(centred), rtol=1e-5, atol=1e-5)


def test_other_formats_are_loaded_by_sae_lens_itself(registry, monkeypatch):
    sae_lens = pytest.importorskip("sae_lens")
    theirs = sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(d_in=8, d_sae=20))
    theirs.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", lambda *arguments, **options: theirs)
    dictionary = ConceptDictionary.from_sae_lens("scope", "layer_0")
    assert (dictionary.kind, dictionary.layer, dictionary.n_concepts) == ("jumprelu", 0, 20)


def test_a_folder_that_is_not_there_and_files_that_must_be_converted(tmp_path):
    with pytest.raises(CoCoMixError, match=r"nothing"):
        ConceptDictionary.from_sae_lens(tmp_path / "nothing")
    with pytest.raises(CoCoMixError, match=r"cocomix import .*model\.pt"):
        ConceptDictionary.from_sae_lens(tmp_path / "model.pt")
    with pytest.raises(CoCoMixError, match=r"no cfg\.json"):
        ConceptDictionary.from_sae_lens(tmp_path)


@pytest.fixture
def made(tmp_path):
    dictionary = make_dictionary()
    with Dictionary.create(tmp_path / "sae", identity={"name": "test"}) as staging:
        dictionary.save(staging.path)
        staging.finish(DictionaryManifest(num_concepts=48, dictionary_fingerprint=dictionary.fingerprint()))
    return tmp_path / "sae"


def test_a_dictionary_with_a_manifest_is_checked_before_it_is_used(made, tmp_path):
    assert ConceptDictionary.from_sae_lens(made).fingerprint() == Dictionary.open(made).manifest.dictionary_fingerprint
    moved = Path(shutil.copytree(made, tmp_path / "copy"))
    make_dictionary("relu").save(moved)
    with pytest.raises(CoCoMixError, match=r"copy/.*changed|bytes"):
        ConceptDictionary.from_sae_lens(moved)
    assert Dictionary.open(moved).verify().broken


def test_a_dictionary_at_a_url(made):
    url = Dictionary.open(made).push("memory://bucket/sae")
    assert ConceptDictionary.from_sae_lens(url).fingerprint() == make_dictionary().fingerprint()
