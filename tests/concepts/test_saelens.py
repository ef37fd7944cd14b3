"""SAEs that SAELens wrote are read to the same numbers; SAELens' own encode and decode are the reference."""

import warnings

import pytest
import torch

from cocomix.concepts import ConceptDictionary
from cocomix.concepts.saelens import save_sae_lens
from cocomix.runtime.errors import CoCoMixError

sae_lens = pytest.importorskip("sae_lens")

D_IN, D_SAE = 16, 40
SHAPE = {"d_in": D_IN, "d_sae": D_SAE}
CASES = {
    "topk": (sae_lens.TopKSAEConfig, {"k": 5}),
    "topk_rescaled": (sae_lens.TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": (sae_lens.JumpReLUSAEConfig, {}),
    "standard": (sae_lens.StandardSAEConfig, {}),
}


def randomize(sae):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if name == "threshold":
                parameter.abs_()
    return sae


def assert_equal(dictionary, sae, hidden):
    with torch.no_grad():
        latents = sae.encode(hidden)
        torch.testing.assert_close(dictionary.latents(hidden), latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dictionary.reconstruct(hidden), sae.decode(latents), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale", "none"])
@pytest.mark.parametrize("subtract", [True, False])
def test_inference_saes(case, normalize, subtract, tmp_path):
    """Read, and written again so that SAELens computes the same."""
    config, options = CASES[case]
    config = config(**SHAPE, **options, normalize_activations=normalize, apply_b_dec_to_input=subtract)
    sae = randomize(sae_lens.SAE.get_sae_class_for_architecture(config.architecture())(config))
    sae.save_model(tmp_path / "theirs")
    hidden = torch.randn(3, 4, D_IN) * 2 + 1
    dictionary = ConceptDictionary.from_sae_lens(tmp_path / "theirs")
    assert_equal(dictionary, sae, hidden)
    save_sae_lens(dictionary, tmp_path / "ours")
    again = sae_lens.SAE.load_from_disk(tmp_path / "ours")
    assert (again.cfg.normalize_activations, again.cfg.apply_b_dec_to_input) == (normalize, subtract)
    assert_equal(dictionary, again, hidden)


def test_a_state_of_zeros_is_left_alone():
    dictionary = ConceptDictionary.from_tensors(
        torch.eye(4), torch.ones(4), torch.eye(4), torch.zeros(4), normalize="constant_norm"
    )
    assert torch.equal(dictionary.latents(torch.zeros(1, 4)), torch.ones(1, 4))


def test_a_dictionary_fitted_here_is_sae_lens_own(workshop):
    """Latents of raw hidden states, reconstruction, and what SAELens' users look at: the decoder and the metadata."""
    ours, theirs = (
        ConceptDictionary.from_sae_lens(workshop.dictionary),
        sae_lens.SAE.load_from_disk(workshop.dictionary),
    )
    hidden = 3 * torch.randn(2, 5, ours.d_model, generator=torch.Generator().manual_seed(2)) + 1
    assert_equal(ours, theirs, hidden)
    assert theirs.cfg.normalize_activations == "layer_norm"
    assert theirs.cfg.metadata.hook_name == "transformer.h.1"
    torch.testing.assert_close(theirs.W_dec, ours.W_dec)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu", "standard"])
def test_trained_saes_as_saved_for_inference(kind, tmp_path):
    name = {"topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "standard": "Standard"}[kind]
    options = {"k": 5} if "topk" in kind else {}
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(**SHAPE, **options)
    training = randomize(getattr(sae_lens, f"{name}TrainingSAE")(config))
    if kind == "batchtopk":
        training.topk_threshold.fill_(0.7)
    training.save_inference_model(tmp_path)
    reference = sae_lens.SAE.load_from_disk(tmp_path)
    dictionary = ConceptDictionary.from_sae_lens(str(tmp_path))
    assert dictionary.kind == {"batchtopk": "jumprelu", "standard": "relu"}.get(kind, kind)
    assert_equal(dictionary, reference, torch.randn(6, D_IN))


def save(tmp_path, config):
    sae = sae_lens.SAE.get_sae_class_for_architecture(config.architecture())(config)
    sae.save_model(tmp_path)
    return tmp_path


def test_what_cannot_be_reproduced_is_refused(tmp_path):
    gated = save(tmp_path / "gated", sae_lens.GatedSAEConfig(**SHAPE))
    with pytest.raises(CoCoMixError, match="architecture 'gated'; known are topk, jumprelu"):
        ConceptDictionary.from_sae_lens(gated)
    scaled = save(
        tmp_path / "scaled", sae_lens.StandardSAEConfig(**SHAPE, normalize_activations="expected_average_only_in")
    )
    with pytest.raises(CoCoMixError, match="expected_average_only_in"):
        ConceptDictionary.from_sae_lens(scaled)


def test_a_place_without_an_sae_is_refused(tmp_path):
    with pytest.raises(CoCoMixError, match="is not a folder with an SAE"):
        ConceptDictionary.from_sae_lens(tmp_path / "nothing")
    with pytest.raises(CoCoMixError, match="SAELens cannot load"):
        ConceptDictionary.from_sae_lens(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CoCoMixError, match="SAELens cannot load no-such-release/blocks"):
            ConceptDictionary.from_sae_lens("no-such-release", "blocks.0.hook_resid_post")
