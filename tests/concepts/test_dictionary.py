import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.concepts import ConceptDictionary
from cocomix.concepts import dictionary as dictionary_module
from cocomix.runtime.errors import CoCoMixError

from .conftest import CONCEPTS, D_MODEL, make_dictionary

KINDS = ("topk", "jumprelu", "relu")


def naive_latents(dictionary: ConceptDictionary, hidden: torch.Tensor) -> torch.Tensor:
    """The formulas of the module's text, written out densely."""
    if dictionary.normalize == "layer_norm":
        hidden = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.std(-1, keepdim=True) + 1e-5)
    pre = (hidden - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc
    if dictionary.kind == "topk":
        kept = torch.zeros_like(pre, dtype=torch.bool).scatter(-1, pre.topk(dictionary.k).indices, True)
        return pre.relu() * kept
    return pre.relu() * (pre > (0 if dictionary.threshold is None else dictionary.threshold))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", ["layer_norm", "none"])
def test_latents_and_reconstruction_equal_the_naive_form(kind, normalize):
    dictionary = make_dictionary(kind, normalize=normalize)
    hidden = torch.randn(2, 5, D_MODEL) * 3 + 1
    latents = naive_latents(dictionary, hidden)
    torch.testing.assert_close(dictionary.latents(hidden), latents)
    expected = latents @ dictionary.W_dec + dictionary.b_dec
    if normalize == "layer_norm":
        expected = expected * hidden.std(-1, keepdim=True) + hidden.mean(-1, keepdim=True)
    torch.testing.assert_close(dictionary.reconstruct(hidden), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_chunked_encoding_changes_nothing(kind, monkeypatch):
    dictionary = make_dictionary(kind)
    hidden = torch.randn(7, D_MODEL)
    whole = dictionary.encode(hidden)
    monkeypatch.setattr(dictionary_module, "_CHUNK_ELEMENTS", 2 * CONCEPTS)
    chunked = dictionary.encode(hidden)
    assert torch.equal(whole.ids, chunked.ids)
    torch.testing.assert_close(whole.values, chunked.values)


@given(positions=st.integers(1, 5), seed=st.integers(0, 1000), kind=st.sampled_from(KINDS))
@settings(max_examples=25, deadline=None)
def test_sparse_codes_hold_every_active_concept_once(positions, seed, kind):
    dictionary = make_dictionary(kind)
    hidden = torch.randn(positions, D_MODEL, generator=torch.Generator().manual_seed(seed))
    codes = dictionary.encode(hidden)
    active = (naive_latents(dictionary, hidden) > 0).sum(-1)
    assert torch.equal((codes.values > 0).sum(-1), active)
    assert torch.equal((dictionary.densify(codes) > 0).sum(-1), active)
    assert codes.ids.shape == codes.values.shape


def test_encoding_keeps_no_state_between_calls():
    dictionary = make_dictionary()
    first, second = torch.randn(4, D_MODEL), 10 * torch.randn(4, D_MODEL)
    _, statistics = dictionary.standardize(first)
    codes = dictionary.encode(first)
    dictionary.encode(second)
    assert torch.equal(dictionary.decode(codes, statistics), dictionary.reconstruct(first))
    assert torch.equal(dictionary.decode(codes, statistics), dictionary.reconstruct(first))  # twice is no different


def test_fingerprint_follows_weights_and_settings_but_not_the_name():
    dictionary = make_dictionary()
    tensors = (dictionary.W_enc, dictionary.b_enc, dictionary.W_dec, dictionary.b_dec)
    same = ConceptDictionary(*tensors, k=8, normalize="layer_norm", name="another")
    assert same.fingerprint() == dictionary.fingerprint()
    others = [
        ConceptDictionary(*tensors, k=7, normalize="layer_norm"),
        ConceptDictionary(*tensors, k=8, normalize="none"),
        ConceptDictionary(*tensors, k=8, normalize="layer_norm", subtract_b_dec=False),
        ConceptDictionary(*tensors[:3], tensors[3] + 1e-6, k=8, normalize="layer_norm"),
    ]
    assert len({dictionary.fingerprint(), *(other.fingerprint() for other in others)}) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": torch.zeros(D_MODEL, CONCEPTS)}, "W_dec has shape"),
        ({"b_enc": torch.zeros(3)}, "b_enc has shape"),
        ({"W_enc": torch.zeros(3)}, "W_enc must be"),
        ({"k": 0}, "k must be between 1 and the 48"),
        ({"k": 49}, "k must be between 1 and the 48"),
        ({"threshold": torch.zeros(CONCEPTS)}, "not both"),
        ({"normalize": "batch"}, "normalize must be"),
    ],
)
def test_wrong_tensors_are_refused_with_a_sentence(change, message):
    arguments = {
        "W_enc": torch.zeros(D_MODEL, CONCEPTS),
        "b_enc": torch.zeros(CONCEPTS),
        "W_dec": torch.zeros(CONCEPTS, D_MODEL),
        "b_dec": torch.zeros(D_MODEL),
        "k": 4,
    }
    with pytest.raises(CoCoMixError, match=message):
        ConceptDictionary(**{**arguments, **change})
