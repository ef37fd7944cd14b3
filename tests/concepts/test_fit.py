import pytest
import torch

from cocomix.artifacts import AlreadyExists
from cocomix.concepts import (
    ConceptDictionary,
    Dictionary,
    FitSettings,
    fit,
    fit_dictionary,
    fit_identity,
    model_fingerprint,
)
from cocomix.concepts.dictionary import layer_normalize
from cocomix.runtime.errors import CoCoMixError

from .conftest import D_MODEL, TokenBlocks, make_model

sae_lens = pytest.importorskip("sae_lens")

BLOCK = 12
SETTINGS = FitSettings(
    num_concepts=64, k=6, tokens=16_000, batch_size=160, learning_rate=5e-3, forward_tokens=200, dead_after_tokens=2_000
)


@pytest.fixture
def blocks():
    return TokenBlocks(60, 0, BLOCK)


@pytest.fixture
def evaluation():
    return TokenBlocks(20, 9, BLOCK).tokens


def test_a_fitted_dictionary_explains_the_layer_and_sae_lens_reads_it(blocks, evaluation, tmp_path, capfd):
    model = make_model("gpt2")
    fitted = fit_dictionary(model, 1, blocks, evaluation, tmp_path / "sae", SETTINGS, teacher_name="tiny")
    assert fitted.manifest == Dictionary.open(tmp_path / "sae").manifest
    assert (fitted.manifest.teacher, fitted.manifest.layer, fitted.manifest.num_concepts) == ("tiny", 1, 64)
    assert fitted.manifest.made_from["teacher"] == model_fingerprint(model)
    report = fitted.manifest.report
    assert report.fit.fvu < 0.4
    assert report.ce_recovered == report.fit.ce_recovered
    assert report.tokens == 16_000
    assert not capfd.readouterr().err  # SAELens' own progress bar stays off

    sae = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    dictionary = ConceptDictionary.from_sae_lens(tmp_path / "sae")
    assert dictionary.fingerprint() == fitted.manifest.dictionary_fingerprint
    assert dictionary.layer == 1
    assert (dictionary.kind, dictionary.k, dictionary.normalize) == ("topk", 6, "layer_norm")
    assert sae.cfg.metadata.hook_name == "transformer.h.1"
    torch.testing.assert_close(dictionary.W_dec.norm(dim=-1), torch.ones(64))
    hidden = torch.randn(5, D_MODEL) * 3 + 1
    with torch.no_grad():
        torch.testing.assert_close(dictionary.latents(hidden), sae.encode(hidden), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dictionary.reconstruct(hidden), sae(hidden), rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_weights(blocks, evaluation, tmp_path):
    settings = SETTINGS.model_copy(update={"tokens": 1_600})
    prints = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fitted = fit_dictionary(
            make_model("llama"), 0, blocks, evaluation, tmp_path / name, settings.model_copy(update={"seed": seed})
        )
        prints.append(fitted.manifest.dictionary_fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_the_teacher_runs_in_the_dtype_asked_for_which_is_told(blocks, evaluation, tmp_path, monkeypatch):
    """It ran in float32 alone; what says nothing was made so."""
    asked = []
    read = fit.FrozenDecoder.hidden_states

    def noted(decoder, *arguments, dtype=None):
        asked.append(dtype)
        return read(decoder, *arguments, dtype=dtype)

    monkeypatch.setattr(fit.FrozenDecoder, "hidden_states", noted)
    settings = SETTINGS.model_copy(update={"tokens": 1_600})
    monkeypatch.setattr("cocomix.runtime.device.fast_bfloat16", lambda device: True)
    for dtype, chosen in (("float32", "float32"), ("auto", "bfloat16"), ("float16", "float16")):
        asked.clear()
        output, given = tmp_path / dtype, settings.model_copy(update={"dtype": dtype})
        fit_dictionary(make_model("gpt2"), 1, blocks, evaluation, output, given)
        assert getattr(torch, chosen) in asked
        manifest = Dictionary.open(output).manifest
        assert manifest.settings.dtype == chosen
        assert manifest.identity["settings"].get("dtype", "float32") == chosen
        assert Dictionary.made(output, manifest.identity) is not None
        for other in {"float32", "bfloat16", "float16"} - {chosen}:
            identity = fit_identity(manifest.teacher, 1, settings.model_copy(update={"dtype": other}))
            with pytest.raises(AlreadyExists) as caught:
                Dictionary.made(output, identity)
            assert caught.value.keys == ("settings.dtype",)


@pytest.mark.parametrize("after_bos", [False, True])
def test_batches_are_normalised_hidden_states_of_every_block_once_per_pass(after_bos, blocks):
    """All of them, or with `after_bos` those from the second position on."""
    decoder = fit.FrozenDecoder(make_model("gpt2"), 1)
    settings = SETTINGS.model_copy(update={"batch_size": 60 * (BLOCK - after_bos)})
    batches = fit._activations(decoder, blocks, settings, after_bos)
    first, second = next(batches), next(batches)
    expected, _ = layer_normalize(decoder.hidden_states(blocks.tokens)[:, int(after_bos) :].flatten(0, 1))
    order = lambda states: states[states[:, 0].argsort()]  # noqa: E731
    torch.testing.assert_close(order(first), order(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(order(second), order(expected), rtol=1e-4, atol=1e-5)
    assert not torch.equal(first, second)


def test_a_loss_that_is_not_finite_stops_the_fit_and_leaves_nothing(blocks, evaluation, tmp_path):
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(CoCoMixError, match="not finite"):
        fit_dictionary(make_model("gpt2"), 1, blocks, evaluation, tmp_path / "sae", settings)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 65}, "k = 65 active concepts .* num_concepts = 64"),
        ({"blocks": TokenBlocks(0, 0, BLOCK)}, "no token blocks"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message, blocks, evaluation, tmp_path):
    settings = SETTINGS.model_copy(update={"k": change["k"]} if "k" in change else {})
    with pytest.raises(CoCoMixError, match=message):
        fit_dictionary(make_model("gpt2"), 1, change.get("blocks", blocks), evaluation, tmp_path / "sae", settings)


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


def test_sizes_beyond_the_memory_are_refused_with_numbers(blocks, evaluation, tmp_path, monkeypatch):
    """500,000 concepts were ended by the system after a minute, without a word."""
    monkeypatch.setattr(fit, "available_memory", lambda device: 2**30)
    settings = FitSettings(num_concepts=500_000)
    with pytest.raises(CoCoMixError, match=r"500,000 .* 15\.7 GiB .* 1\.0 GiB"):
        fit_dictionary(make_model("gpt2"), 1, blocks, evaluation, tmp_path / "sae", settings)
    assert not list(tmp_path.iterdir())


def test_what_is_needed_grows_with_every_size():
    least = fit.memory_needed(FitSettings(num_concepts=1000, batch_size=100), 64)
    assert least == 4 * 1000 * (4 * 2 * 64 + 8 * 100)
    assert fit.memory_needed(FitSettings(num_concepts=2000, batch_size=100), 64) == 2 * least


def test_many_dead_concepts_come_with_a_remedy(blocks, evaluation, tmp_path, caplog):
    few = {"num_concepts": 512, "k": 1, "tokens": 3_200, "dead_after_tokens": 320}
    settings = SETTINGS.model_copy(update=few)
    fitted = fit_dictionary(make_model("gpt2"), 1, blocks, evaluation, tmp_path / "sae", settings)
    dead = fitted.manifest.report.dead_concepts
    assert dead > 512 / 4
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{dead:,} of 512" in warning
    assert "--num-concepts" in warning
