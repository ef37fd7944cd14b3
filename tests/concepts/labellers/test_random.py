"""Labels drawn by a hash: the same wherever and however a text is labelled, and fair."""

import pytest
import torch

from cocomix.concepts import ConceptTeacher, RandomLabeller
from cocomix.concepts.labellers.random import context_hashes

from ..conftest import VOCAB, make_dictionary, make_model

WORD = 2**64


def mix(value: int) -> int:
    """SplitMix64's output function in Python's unbounded integers."""
    value = (value + 0x9E3779B97F4A7C15) % WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % WORD
    return value ^ (value >> 31)


def signed(value: int) -> int:
    return value - WORD if value >= WORD // 2 else value


@pytest.fixture
def labeller():
    return RandomLabeller(ConceptTeacher(make_model("gpt2"), make_dictionary(), 1))


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_the_draw_by_hand(kind, input_ids):
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(kind), 1)
    found = RandomLabeller(teacher, seed=5).label(input_ids, k=3)
    latents = teacher.dictionary.latents(teacher.decoder.hidden_states(input_ids))
    for row, tokens in enumerate(input_ids.tolist()):
        context = mix(5)
        for position, token in enumerate(tokens[:-1]):
            context = (context + mix((mix(token) + position + 1) % WORD)) % WORD
            active = latents[row, position].gt(0).nonzero().flatten().tolist()
            ranked = sorted(active, key=lambda concept: signed(mix((mix(concept) + context) % WORD)), reverse=True)
            labels = found.ids[row, position]
            assert set(labels[labels != -100].tolist()) == set(ranked[:3])
            scores = latents[row, position][labels[labels != -100]]
            torch.testing.assert_close(found.scores[row, position][labels != -100], scores)
    assert (found.ids[:, -1] == -100).all()


def test_batches_padding_and_company_change_no_label(labeller, input_ids):
    together = labeller.label(input_ids, k=3).ids
    alone = torch.cat([labeller.label(row[None], k=3).ids for row in input_ids])
    assert torch.equal(together, alone)
    for pad in ((4, 0), (0, 4)):
        padded = torch.nn.functional.pad(input_ids, pad)
        mask = torch.nn.functional.pad(torch.ones_like(input_ids), pad)
        ids = labeller.label(padded, mask, k=3).ids
        assert torch.equal(ids[:, pad[0] : pad[0] + input_ids.shape[1]], together)


def test_seeds_draw_differently_and_each_the_same_again(labeller, input_ids):
    draws = [RandomLabeller(labeller.teacher, seed=seed).label(input_ids, k=3).ids for seed in (0, 1)]
    assert torch.equal(draws[0], labeller.label(input_ids, k=3).ids)
    assert not torch.equal(*draws)


def test_every_active_concept_is_as_likely():
    """Eight are active and two drawn, so each is drawn in a quarter of the positions."""
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)
    tokens = torch.randint(1, VOCAB, (40, 51), generator=torch.Generator().manual_seed(0))
    ids = RandomLabeller(teacher).label(tokens, k=2).ids[:, :-1]
    latents = teacher.dictionary.latents(teacher.decoder.hidden_states(tokens))[:, :-1]
    ranks = (latents.unsqueeze(-2) > latents.gather(-1, ids).unsqueeze(-1)).sum(-1)  # by activation, 0 to 7
    share = torch.bincount(ranks.flatten(), minlength=8) / ids[..., 0].numel()
    torch.testing.assert_close(share, torch.full((8,), 0.25), rtol=0.0, atol=0.04)


def test_hashes_follow_the_order_of_tokens():
    tokens = torch.tensor([[3, 4, 5], [4, 3, 5], [3, 4, 5]])
    hashes = context_hashes(tokens, None, 0)
    assert torch.equal(hashes[0], hashes[2])
    assert len(set(hashes[:2].flatten().tolist())) == 6
