"""SAEs that SAELens wrote are read to the same numbers; SAELens' own encode and decode are the reference."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.concepts import ConceptDictionary
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
    dictionary.save(str(tmp_path / "ours"))
    again = sae_lens.SAE.load_from_disk(tmp_path / "ours")
    assert (again.cfg.normalize_activations, again.cfg.apply_b_dec_to_input) == (normalize, subtract)
    assert_equal(dictionary, again, hidden)


def test_a_state_of_zeros_is_left_alone():
    dictionary = ConceptDictionary(torch.eye(4), torch.ones(4), torch.eye(4), torch.zeros(4), normalize="constant_norm")
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


def save(folder, config, **notes):
    sae = sae_lens.SAE.get_sae_class_for_architecture(config.architecture())(config)
    for name, value in notes.items():
        setattr(sae.cfg.metadata, name, value)
    randomize(sae).save_model(folder)
    return folder


def rewrite(folder, change):
    """Change a folder's configuration; `change` takes and returns it."""
    path = folder / "cfg.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


OLD = {
    "topk": (sae_lens.TopKSAEConfig(**SHAPE, k=5), {"activation_fn": "topk", "activation_fn_kwargs": {"k": 5}}),
    "standard": (sae_lens.StandardSAEConfig(**SHAPE), {"activation_fn_str": "relu", "normalize_activations": False}),
    "jumprelu": (sae_lens.JumpReLUSAEConfig(**SHAPE), {"normalize_activations": None}),
}


@pytest.mark.parametrize("kind", OLD)
def test_flat_configurations_from_before_version_6(kind, tmp_path):
    config, fields = OLD[kind]
    save(tmp_path, config)
    flat = {**SHAPE, "dtype": "float32", "hook_point": "blocks.3.hook_resid_pre", "model_name": "gpt2", **fields}
    rewrite(tmp_path, lambda _: flat | ({"architecture": "jumprelu"} if kind == "jumprelu" else {}))
    dictionary = ConceptDictionary.from_sae_lens(tmp_path)
    assert (dictionary.layer, dictionary.prepend_bos) == (2, True)
    assert_equal(dictionary, sae_lens.SAE.load_from_disk(tmp_path), torch.randn(6, D_IN))


@pytest.mark.parametrize("version", ["6.0.0-rc.1", "6.54.12", "5.11.0"])
def test_notes_are_read_where_their_version_puts_them(version, tmp_path):
    save(tmp_path, sae_lens.StandardSAEConfig(**SHAPE), hook_name="blocks.1.hook_resid_post", prepend_bos=False)
    rewrite(tmp_path, lambda config: config | {"metadata": config["metadata"] | {"sae_lens_version": version}})
    reference = sae_lens.SAE.load_from_disk(tmp_path)
    dictionary = ConceptDictionary.from_sae_lens(tmp_path)
    assert dictionary.layer == (None if reference.cfg.metadata.hook_name is None else 1)
    assert dictionary.prepend_bos == reference.cfg.metadata.prepend_bos


def test_a_mean_centred_stream_is_centred(tmp_path):
    """`gpt2-small-res-jb` and kin describe streams whose mean over the width TransformerLens had taken out."""
    save(
        tmp_path / "theirs",
        sae_lens.StandardSAEConfig(**SHAPE),
        model_from_pretrained_kwargs={"center_writing_weights": True},
    )
    dictionary = ConceptDictionary.from_sae_lens(tmp_path / "theirs")
    assert dictionary.normalize == "centre"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = sae_lens.SAE.load_from_disk(tmp_path / "theirs")
    hidden = torch.randn(6, D_IN) + 3
    mean = hidden.mean(-1, keepdim=True)
    with torch.no_grad():
        latents = reference.encode(hidden - mean)
        torch.testing.assert_close(dictionary.latents(hidden), latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            dictionary.reconstruct(hidden), reference.decode(latents) + mean, rtol=1e-4, atol=1e-5
        )
    dictionary.save(str(tmp_path / "ours"))
    again = ConceptDictionary.from_sae_lens(tmp_path / "ours")
    assert (again.normalize, again.fingerprint()) == ("centre", dictionary.fingerprint())


@pytest.mark.parametrize(
    ("config", "notes", "message"),
    [
        (sae_lens.GatedSAEConfig(**SHAPE), {}, "'gated'"),
        (sae_lens.TranscoderConfig(**SHAPE, d_out=D_IN, apply_b_dec_to_input=False), {}, "'transcoder'"),
        (sae_lens.StandardSAEConfig(**SHAPE, normalize_activations="expected_average_only_in"), {}, "expected_average"),
        (sae_lens.StandardSAEConfig(**SHAPE), {"hook_name": "blocks.1.hook_mlp_out"}, "hook_mlp_out"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(config, notes, message, tmp_path):
    with pytest.raises(CoCoMixError, match=message):
        ConceptDictionary.from_sae_lens(save(tmp_path, config, **notes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reshape_activations": "hook_z"}, "hook_z"),
        ({"activation_fn": "tanh-relu"}, "tanh-relu"),
        ({"d_in": "wide"}, "d_in"),
        ({"d_sae": D_SAE + 1}, "d_sae 41"),
        ({"architecture": "topk"}, "k None"),
        ({"architecture": "jumprelu"}, "threshold"),
        ({"metadata": [1]}, "cfg.json"),
    ],
)
def test_configurations_that_do_not_describe_the_weights_are_refused(change, message, tmp_path):
    save(tmp_path, sae_lens.StandardSAEConfig(**SHAPE))
    rewrite(tmp_path, lambda config: config | change)
    with pytest.raises(CoCoMixError, match=message):
        ConceptDictionary.from_sae_lens(tmp_path)


@pytest.mark.parametrize(("scale", "message"), [(1.0, None), (2.0, "scaling_factor")])
def test_a_scaling_factor_is_dropped_only_where_it_does_nothing(scale, message, tmp_path):
    save(tmp_path, sae_lens.StandardSAEConfig(**SHAPE))
    weights = load_file(tmp_path / "sae_weights.safetensors")
    save_file({**weights, "scaling_factor": torch.full((D_SAE,), scale)}, tmp_path / "sae_weights.safetensors")
    if message is None:
        assert ConceptDictionary.from_sae_lens(tmp_path).n_concepts == D_SAE
    else:
        with pytest.raises(CoCoMixError, match=message):
            ConceptDictionary.from_sae_lens(tmp_path)


def test_damaged_files_are_refused(tmp_path):
    for number, text in enumerate(["", "[]", "{", "{}", '{"a":' * 3000]):
        folder = save(tmp_path / str(number), sae_lens.StandardSAEConfig(**SHAPE))
        (folder / "cfg.json").write_text(text)
        with pytest.raises(CoCoMixError, match=r"cfg\.json"):
            ConceptDictionary.from_sae_lens(folder)
    folder = save(tmp_path / "weights", sae_lens.StandardSAEConfig(**SHAPE))
    (folder / "sae_weights.safetensors").write_bytes(b"x")
    with pytest.raises(CoCoMixError, match="weights of"):
        ConceptDictionary.from_sae_lens(folder)


def test_no_module_of_sae_lens_is_imported_to_read_a_folder(tmp_path):
    save(tmp_path, sae_lens.TopKSAEConfig(**SHAPE, k=5))
    code = (
        "import sys; from cocomix.concepts import ConceptDictionary;"
        f"print(ConceptDictionary.from_sae_lens({str(tmp_path)!r}).k, 'sae_lens' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "5 False\n"
    )
