import pytest
import torch

from cocomix.concepts import ConceptTeacher, TokenLookupLabeller
from cocomix.concepts.labellers import learned_tables
from cocomix.runtime.errors import CoCoMixError

from ..conftest import CONCEPTS, VOCAB, make_dictionary, make_model, refused_by

SAMPLE = torch.randint(1, 30, (12, 20), generator=torch.Generator().manual_seed(4))  # tokens 30 to 60 do not occur


@pytest.fixture(params=["topk", "jumprelu"])
def teacher(request):
    return ConceptTeacher(make_model("gpt2"), make_dictionary(request.param), 1)


def naive_means(teacher, tokens):
    """E[c_i | x_t = x] from dense activations, [vocab, concepts]."""
    latents = teacher.dictionary.latents(teacher.decoder.hidden_states(tokens)).double()
    means = torch.zeros(VOCAB, CONCEPTS, dtype=torch.float64)
    described = teacher.described(tokens, None)
    for token in range(VOCAB):
        rows = latents[(tokens == token) & described]
        if len(rows):
            means[token] = rows.mean(0)
    return means


@pytest.mark.parametrize("pending", [1, 2**23])
def test_labels_are_the_concepts_with_the_largest_mean_for_the_token(teacher, pending, monkeypatch):
    monkeypatch.setattr(learned_tables, "_PENDING", pending)
    labeller = TokenLookupLabeller(teacher).fit(torch.split(SAMPLE, 5))
    best, ids = naive_means(teacher, SAMPLE).topk(3)
    text = torch.randint(1, VOCAB, (4, 15), generator=torch.Generator().manual_seed(5))
    labels = labeller.label(text, k=3)
    expected = ids.masked_fill(best <= 0, -100)[text]
    expected[:, -1] = -100
    assert torch.equal(labels.ids, expected)
    assert (labels.ids[text >= 30] == -100).all()
    found = labels.ids != -100
    torch.testing.assert_close(labels.scores[found], best.float()[text][found])
    assert not labels.scores[~found].any()


def test_only_the_current_token_matters(teacher):
    labeller = TokenLookupLabeller(teacher).fit([SAMPLE])
    text = torch.tensor([[7, 8, 7, 9, 7, 2], [9, 9, 7, 1, 1, 7]])
    ids = labeller.label(text, k=4).ids
    first = ids[0, 0]
    assert (first != -100).any()
    assert all(torch.equal(ids[row, place], first) for row, place in ((0, 2), (0, 4), (1, 2)))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    assert torch.equal((labeller.label(text, mask, k=4).ids != -100).any(-1), teacher.labelled_positions(text, mask))


def test_the_begin_of_text_token_is_neither_learned_nor_labelled():
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(), 1, bos_token_id=50)
    sample = SAMPLE.clone()
    sample[:, 0] = 50
    labeller = TokenLookupLabeller(teacher).fit([sample])
    assert (labeller.tables()["ids"][50] == -100).all()
    best, ids = naive_means(teacher, sample).topk(2)
    assert torch.equal(labeller.label(sample, k=2).ids[:, 1:-1], ids.masked_fill(best <= 0, -100)[sample][:, 1:-1])


def test_tables_are_all_that_was_learned(teacher):
    fitted = TokenLookupLabeller(teacher).fit([SAMPLE])
    again = TokenLookupLabeller(teacher).with_tables(fitted.tables())
    assert torch.equal(again.label(SAMPLE, k=5).ids, fitted.label(SAMPLE, k=5).ids)
    assert again.fingerprint() == fitted.fingerprint()
    other = TokenLookupLabeller(teacher).fit([SAMPLE[:4]])
    assert refused_by(fitted.fingerprint(), other.fingerprint()) == ("table",)


def test_what_cannot_be_looked_up_is_refused(teacher):
    with pytest.raises(CoCoMixError, match="fit"):
        TokenLookupLabeller(teacher).label(SAMPLE, k=2)
    with pytest.raises(CoCoMixError, match="token_lookup"):
        TokenLookupLabeller(teacher).fit([])
    fitted = TokenLookupLabeller(teacher).fit([SAMPLE])
    with pytest.raises(CoCoMixError, match="33"):
        fitted.label(SAMPLE, k=33)
    with pytest.raises(CoCoMixError, match="ids"):
        fitted.with_tables({name: tensor[:5] for name, tensor in fitted.tables().items()})
    assert fitted.flops_per_token(128) == 0.0
