import json

import numpy as np
import pytest
import torch

from cocomix.concepts import ConceptDictionary, FitSettings, fit, fit_dictionary
from cocomix.concepts.dictionary import layer_normalize
from cocomix.runtime.errors import CoCoMixError

from .conftest import D_MODEL, TokenShard, make_model

sae_lens = pytest.importorskip("sae_lens")

BLOCK = 12
SETTINGS = FitSettings(
    num_concepts=64, k=6, tokens=16_000, batch_size=160, learning_rate=5e-3, forward_tokens=200, dead_after_tokens=2_000
)


@pytest.fixture
def shards():
    return [TokenShard("train/00000", 40, 0, BLOCK), TokenShard("train/00001", 20, 1, BLOCK)]


@pytest.fixture
def evaluation():
    return torch.from_numpy(TokenShard("validation/00000", 20, 9, BLOCK).tokens.astype(np.int64))


def test_a_fitted_dictionary_explains_the_layer_and_sae_lens_reads_it(shards, evaluation, tmp_path, capfd):
    model = make_model("gpt2")
    report = fit_dictionary(model, 1, shards, evaluation, tmp_path / "sae", SETTINGS, teacher_name="tiny")
    assert report.fit.fvu < 0.4
    assert report.ce_recovered == report.fit.ce_recovered
    assert report.tokens == 16_000
    assert report.teacher["name"] == "tiny"
    assert json.loads((tmp_path / "sae" / "fit.json").read_text()) == report.model_dump(mode="json")
    assert not capfd.readouterr().err  # SAELens' own progress bar stays off

    sae = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    dictionary = ConceptDictionary.from_sae_lens(tmp_path / "sae")
    assert dictionary.fingerprint() == report.dictionary_fingerprint
    assert (dictionary.kind, dictionary.k, dictionary.normalize) == ("topk", 6, "layer_norm")
    assert sae.cfg.metadata.hook_name == "transformer.h.1"
    torch.testing.assert_close(dictionary.W_dec.norm(dim=-1), torch.ones(64))
    hidden = torch.randn(5, D_MODEL) * 3 + 1
    with torch.no_grad():
        torch.testing.assert_close(dictionary.latents(hidden), sae.encode(hidden), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dictionary.reconstruct(hidden), sae(hidden), rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_weights(shards, evaluation, tmp_path):
    settings = SETTINGS.model_copy(update={"tokens": 1_600})
    prints = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        report = fit_dictionary(
            make_model("llama"), 0, shards, evaluation, tmp_path / name, settings.model_copy(update={"seed": seed})
        )
        prints.append(report.dictionary_fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("after_bos", [False, True])
def test_batches_are_normalised_hidden_states_of_every_block_once_per_pass(after_bos, shards):
    """All of them, or with `after_bos` those from the second position on."""
    decoder = fit.FrozenDecoder(make_model("gpt2"), 1)
    settings = SETTINGS.model_copy(update={"batch_size": 60 * (BLOCK - after_bos)})
    batches = fit._activations(decoder, shards, settings, after_bos)
    first, second = next(batches), next(batches)
    tokens = torch.from_numpy(np.concatenate([shard.tokens for shard in shards]).astype(np.int64))
    expected, _ = layer_normalize(decoder.hidden_states(tokens)[:, int(after_bos) :].flatten(0, 1))
    order = lambda states: states[states[:, 0].argsort()]  # noqa: E731
    torch.testing.assert_close(order(first), order(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(order(second), order(expected), rtol=1e-4, atol=1e-5)
    assert not torch.equal(first, second)


def test_a_loss_that_is_not_finite_stops_the_fit_and_leaves_nothing(shards, evaluation, tmp_path):
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(CoCoMixError, match="loss of the dictionary is not finite after"):
        fit_dictionary(make_model("gpt2"), 1, shards, evaluation, tmp_path / "sae", settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"), [({"k": 65}, "k = 65 active concepts cannot be more"), ({"shards": []}, "no token blocks")]
)
def test_what_cannot_be_fitted_is_refused(change, message, shards, evaluation, tmp_path):
    settings = SETTINGS.model_copy(update={"k": change["k"]} if "k" in change else {})
    with pytest.raises(CoCoMixError, match=message):
        fit_dictionary(make_model("gpt2"), 1, change.get("shards", shards), evaluation, tmp_path / "sae", settings)


def test_the_sparse_decoder_trains_like_sae_lens_own():
    states = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(0))
    dead = torch.zeros(64, dtype=torch.bool)
    dead[:20] = True
    results = []
    for cls in (sae_lens.TopKTrainingSAE, fit.sparse_decoding_sae(sae_lens)):
        torch.manual_seed(0)
        sae = cls(sae_lens.TopKTrainingSAEConfig(d_in=D_MODEL, d_sae=64, k=6))
        step = sae_lens.saes.sae.TrainStepInput(states, {}, dead, 0, False)
        output = sae.training_forward_pass(step)
        output.loss.backward()
        results.append([output.loss.detach(), *(parameter.grad for parameter in sae.parameters())])
    for naive, sparse in zip(*results, strict=True):
        torch.testing.assert_close(sparse, naive, rtol=1e-4, atol=1e-5)
