"""Labels of coming words: by hand, within documents, from nothing but what their definition names."""

import math

import pytest
import torch

from cocomix.concepts import (
    FutureClustersConfig,
    FutureClustersLabeller,
    FutureWordsConfig,
    FutureWordsLabeller,
    Vocabulary,
    build_labeller,
)
from cocomix.runtime.errors import CoCoMixError

from ..conftest import refused_by

EOS, SIZE = 0, 40
SAMPLE = torch.randint(1, SIZE, (60, 24), generator=torch.Generator().manual_seed(0))
SAMPLE[::2, 11] = EOS
NONE = -100


def words(tokens: list[list[int]] | torch.Tensor = SAMPLE, *, bos=None, **settings):
    config = FutureWordsConfig(**settings)
    return build_labeller(config, vocabulary=Vocabulary(SIZE, EOS, bos)).fit([torch.as_tensor(tokens)])


def clusters(**settings):
    config = FutureClustersConfig(**{"num_concepts": 6, "dimensions": 8, "window": 5, **settings})
    return build_labeller(config, vocabulary=Vocabulary(SIZE, EOS)).fit(torch.split(SAMPLE, 7))


@pytest.fixture(params=["words", "clusters"])
def labeller(request):
    return words(window=5, min_idf=0.0) if request.param == "words" else clusters()


def test_idf_counts_documents_by_hand():
    """Four documents: [5 6 5 end], [6 7], [8 6 8 6 8 6], [9 9 9 9 9 end]; nothing follows a block's end."""
    table = words([[5, 6, 5, EOS, 6, 7], [8, 6, 8, 6, 8, 6], [9, 9, 9, 9, 9, EOS]], min_idf=1.0).tables()["idf"]
    expected = {5: 4, 6: 4 / 3, 7: 4, 8: 4, 9: 4, 20: 4, EOS: 1}
    for token, ratio in expected.items():
        assert table[token].item() == pytest.approx(math.log(ratio))


def test_the_best_words_by_hand():
    """idf ln 4 for 5, 7 and 9, ln(4/3) for 6, which is too common; a word counts where it comes first."""
    sample = [[5, 6, 5, EOS, 6, 7], [8, 6, 8, 6, 8, 6], [9, 9, 9, 9, 9, EOS]]
    labeller = words(sample, window=3, min_idf=1.0, decay=0.5)
    found = labeller.label(torch.tensor([[7, 6, 5, 5, 9, EOS, 7, 5]]), k=2)
    assert found.ids.tolist() == [
        [[5, NONE], [5, 9], [5, 9], [9, NONE], [NONE, NONE], [NONE, NONE], [5, NONE], [NONE, NONE]]
    ]
    rare = math.log(4)
    assert found.scores[0, :3].flatten().tolist() == pytest.approx(
        [rare / 4, 0, rare / 2, rare / 8, rare / 2, rare / 4], rel=1e-6
    )


def test_a_less_rare_word_wins_where_it_is_much_nearer():
    sample = [[4, 5], [4, 6], [4, 5], [4, 7], [4, 8], [4, 9], [4, 5], [4, 5]]  # 5 in four of eight, 7 in one
    text = torch.tensor([[4, 5, 4, 4, 7, 4]])
    far, near = (words(sample, window=4, min_idf=0.5, decay=decay).label(text, k=1).ids[0, 0] for decay in (0.9, 0.5))
    assert (far.item(), near.item()) == (7, 5)  # 2.08 · 0.9⁴ > 0.69 · 0.9, 2.08 · 0.5⁴ < 0.69 · 0.5


def test_labels_depend_on_the_window_and_on_nothing_else(labeller):
    text = SAMPLE[1:2].clone()
    before = labeller.label(text, k=3).ids[0]
    for place in range(1, text.shape[1]):
        changed = text.clone()
        changed[0, place] = changed[0, place] % (SIZE - 1) + 1
        after = labeller.label(changed, k=3).ids[0]
        reached = torch.arange(text.shape[1])
        reached = (reached < place) & (reached >= place - 5)
        assert torch.equal(after[~reached], before[~reached])


def test_labels_stop_at_the_end_of_the_document(labeller):
    text, other = SAMPLE[:1], SAMPLE[:1].clone()
    other[0, 12:] = SAMPLE[3, 12:]
    labels, changed = (labeller.label(tokens, k=3).ids[0] for tokens in (text, other))
    assert torch.equal(labels[:12], changed[:12])
    assert not torch.equal(labels[12:], changed[12:])
    assert (labels[[10, 11, 23]] == NONE).all()  # before the end, at it, and at the end of the block
    assert not (labels == EOS).all(-1).any()


def test_the_token_that_begins_blocks_ends_no_document_even_if_it_is_the_same():
    text = torch.tensor([[EOS, 5, 6, 7, EOS, 8, 9]])
    found = words(text.tolist(), bos=EOS, min_idf=0.0, window=4)
    assert set(found.label(text, k=4).ids[0, 0].tolist()) == {5, 6, 7, NONE}
    assert set(words(text.tolist(), min_idf=0.0, window=4).label(text, k=4).ids[0, 0].tolist()) == {NONE}


def test_padding_on_either_side_changes_nothing(labeller):
    labels = labeller.label(SAMPLE[:4], k=3).ids
    for pad in ((4, 0), (0, 4)):
        padded, mask = (torch.nn.functional.pad(part, pad) for part in (SAMPLE[:4], torch.ones_like(SAMPLE[:4])))
        found = labeller.label(padded, mask, k=3).ids
        assert torch.equal(found[:, pad[0] : pad[0] + 24], labels)
        assert (found[mask == 0] == NONE).all()


def test_clusters_are_the_nearest_to_the_naive_bag():
    labeller = clusters()
    idf, embeddings, centres = (labeller.tables()[name] for name in ("idf", "embeddings", "centres"))
    row = SAMPLE[0]
    bag = sum(idf[token] * embeddings[token] for token in row[3:8])
    cosines = torch.cosine_similarity(bag[None], centres)
    found = labeller.label(row[None], k=2)
    assert found.ids[0, 2].tolist() == cosines.argsort(descending=True)[:2].tolist()
    torch.testing.assert_close(found.scores[0, 2], cosines.sort(descending=True).values[:2])


def test_words_of_one_context_are_embedded_alike():
    """5 and 6 stand before 7, and 8 and 9 before 10, in any order with anything else."""
    draw = torch.Generator().manual_seed(1)
    pairs = torch.tensor([[5, 7], [6, 7], [8, 10], [9, 10]])
    sample = torch.cat([pairs[torch.randint(4, (400,), generator=draw)], torch.full((400, 1), EOS)], 1)
    config = FutureClustersConfig(num_concepts=2, dimensions=4, window=2)
    labeller = build_labeller(config, vocabulary=Vocabulary(SIZE, EOS)).fit([sample.view(100, 12)])
    five, six, eight = labeller.tables()["embeddings"][[5, 6, 8]]
    assert five @ six > 0.99 > 0.5 > five @ eight


def test_what_is_learned_is_the_same_again_and_belongs_to_the_fingerprint(labeller):
    again = type(labeller)(labeller.vocabulary, **labeller.settings).fit(torch.split(SAMPLE, 7))
    assert again.fingerprint() == labeller.fingerprint()
    restored = type(labeller)(labeller.vocabulary, **labeller.settings).with_tables(labeller.tables())
    assert torch.equal(restored.label(SAMPLE, k=3).ids, labeller.label(SAMPLE, k=3).ids)
    other = type(labeller)(labeller.vocabulary, **labeller.settings).fit([SAMPLE[:30]])
    assert refused_by(labeller.fingerprint(), other.fingerprint()) == ("table",)
    wider = type(labeller)(labeller.vocabulary, **{**labeller.settings, "window": 6}).with_tables(labeller.tables())
    assert refused_by(labeller.fingerprint(), wider.fingerprint()) == ("window",)


def test_costs():
    assert words().flops_per_token(128) == 0.0
    assert clusters().flops_per_token(128) == 2 * 8 * (5 + 6)


@pytest.mark.parametrize("kind", [FutureWordsLabeller, FutureClustersLabeller])
def test_a_labeller_needs_a_vocabulary_and_a_fit(kind):
    config = kind.config_type()
    with pytest.raises(CoCoMixError, match="vocabulary"):
        build_labeller(config)
    built = build_labeller(config, vocabulary=Vocabulary(SIZE, EOS))
    with pytest.raises(CoCoMixError, match="fit"):
        built.label(SAMPLE, k=2)
    with pytest.raises(CoCoMixError, match=config.kind):
        built.fit([])


def test_what_does_not_fit_is_refused():
    with pytest.raises(CoCoMixError, match="num_concepts"):
        clusters(num_concepts=2000)
    with pytest.raises(CoCoMixError, match="dimensions=40"):
        clusters(dimensions=40)
    with pytest.raises(CoCoMixError, match="7"):
        clusters().label(SAMPLE, k=7)
    for labeller in (words(), clusters()):
        with pytest.raises(CoCoMixError, match="41"):
            type(labeller)(Vocabulary(41, EOS), **labeller.settings).with_tables(labeller.tables())
