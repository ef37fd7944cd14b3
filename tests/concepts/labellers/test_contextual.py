"""`contextual` and `attribution` with `centre_by_token`, against means taken from dense scores."""

import pytest
import torch
from pydantic import ValidationError

from cocomix.concepts import (
    AttributionConfig,
    AttributionLabeller,
    CentredAttributionLabeller,
    ConceptTeacher,
    ContextualLabeller,
)
from cocomix.concepts.labellers import learned_tables
from cocomix.runtime.errors import CoCoMixError

from ..conftest import CONCEPTS, VOCAB, make_dictionary, make_model, refused_by

SAMPLE = torch.randint(1, 30, (12, 20), generator=torch.Generator().manual_seed(4))  # tokens 30 to 60 do not occur
TEXT = torch.randint(1, VOCAB, (4, 15), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=["topk", "jumprelu"])
def teacher(request):
    return ConceptTeacher(make_model("gpt2"), make_dictionary(request.param), 1)


def dense(teacher, labeller, tokens):
    """Scores of all concepts, [batch, seq, concepts]."""
    if labeller is ContextualLabeller:
        return teacher.dictionary.latents(teacher.decoder.hidden_states(tokens)).double()
    return teacher.attribution(tokens, reduction="sum").double()


def shrunk_means(scores, tokens):
    """Sum over the token's positions / max(their number, 20), [vocab, concepts]."""
    means = torch.zeros(VOCAB, CONCEPTS, dtype=torch.float64)
    for token in tokens.unique():
        rows = scores[tokens == token]
        means[token] = rows.sum(0) / max(len(rows), 20)
    return means


@pytest.mark.parametrize("pending", [1, 2**23])
@pytest.mark.parametrize("kind", [ContextualLabeller, CentredAttributionLabeller])
def test_labels_exceed_the_tokens_mean_by_most(teacher, kind, pending, monkeypatch):
    monkeypatch.setattr(learned_tables, "_PENDING", pending)
    found = kind(teacher).fit(torch.split(SAMPLE, 12)).label(TEXT, k=3)
    scores = dense(teacher, kind, TEXT)
    centred = scores - shrunk_means(dense(teacher, kind, SAMPLE), SAMPLE)[TEXT]
    best, ids = centred.masked_fill(scores == 0, 0.0).topk(3)
    expected = ids.masked_fill(best <= 0, -100)
    expected[:, -1] = -100
    assert torch.equal(found.ids, expected)
    labelled = found.ids != -100
    assert labelled.any()
    torch.testing.assert_close(found.scores[labelled], best[labelled].float(), rtol=1e-3, atol=1e-6)


def test_present_in_a_text_is_what_exceeds_the_tokens_mean(teacher):
    labeller = ContextualLabeller(teacher).fit([SAMPLE])
    codes = teacher.dictionary.encode(teacher.decoder.hidden_states(TEXT))
    scores = dense(teacher, ContextualLabeller, TEXT)
    centred = scores - shrunk_means(dense(teacher, ContextualLabeller, SAMPLE), SAMPLE)[TEXT]
    expected = centred.masked_fill(scores == 0, 0.0).clamp_min(0).float()
    found = teacher.dictionary.densify(labeller.present(TEXT, codes))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    raw = CentredAttributionLabeller(teacher).present(TEXT, codes)
    assert torch.equal(raw.values, codes.values)


def test_a_token_that_the_sample_lacks_is_not_centred(teacher):
    plain = AttributionLabeller(teacher).label(TEXT, k=3)
    centred = CentredAttributionLabeller(teacher).fit([SAMPLE]).label(TEXT, k=3)
    rare = TEXT >= 30
    assert torch.equal(plain.ids[rare], centred.ids[rare])
    assert not torch.equal(plain.ids[~rare], centred.ids[~rare])


def test_what_is_the_same_at_every_occurrence_is_no_label():
    """A teacher that sees only the current token has nothing to say of context."""
    model = make_model("gpt2")
    for name, weight in model.named_parameters():
        if "attn.c_proj" in name or "wpe" in name:
            torch.nn.init.zeros_(weight)
    teacher = ConceptTeacher(model, make_dictionary(), 1)
    often = SAMPLE.remainder(5) + 1  # every token at least 20 times
    labels = ContextualLabeller(teacher).fit([often]).label(often, k=4)
    assert labels.scores.max() < 1e-5


def test_tables_are_all_that_was_learned(teacher):
    first = ContextualLabeller(teacher).fit([SAMPLE])
    again = ContextualLabeller(teacher).with_tables(first.tables())
    assert torch.equal(again.label(TEXT, k=5).ids, first.label(TEXT, k=5).ids)
    assert again.fingerprint() == first.fingerprint()
    assert refused_by(first.fingerprint(), ContextualLabeller(teacher).fit([SAMPLE[:4]]).fingerprint()) == ("table",)
    narrow = first.with_dtype("bfloat16")
    assert refused_by(first.fingerprint(), narrow.fingerprint()) == ("dtype",)


def test_what_cannot_be_centred_is_refused(teacher):
    with pytest.raises(CoCoMixError, match="fit"):
        ContextualLabeller(teacher).label(TEXT, k=2)
    with pytest.raises(CoCoMixError, match="contextual"):
        ContextualLabeller(teacher).fit([])
    tables = ContextualLabeller(teacher).fit([SAMPLE]).tables()
    with pytest.raises(CoCoMixError, match="means"):
        ContextualLabeller(teacher).with_tables({"keys": tables["keys"]})
    with pytest.raises(CoCoMixError, match="another teacher"):
        ContextualLabeller(teacher).with_tables({**tables, "keys": tables["keys"] + VOCAB * CONCEPTS})
    with pytest.raises(ValidationError, match="centre_by_token"):
        AttributionConfig(centre_by_token=True, activation="pre")


def test_a_sample_without_an_active_concept_centres_nothing(teacher):
    nothing = {"keys": torch.zeros(0, dtype=torch.int64), "means": torch.zeros(0)}
    found = ContextualLabeller(teacher).with_tables(nothing).label(TEXT, k=3)
    assert (found.ids != -100).any()
