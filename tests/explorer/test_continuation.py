from collections import Counter
from itertools import pairwise

import pytest
import torch

from cocomix.explorer.continuation import Sampling, choose_token, continue_tokens
from cocomix.explorer.steer_state import student_forward
from tests.explorer.conftest import CONTEXT

PROMPT = "the list of"


def last(texts):
    *_, final = texts
    return final


def test_greedy_text_equals_generate(subject):
    ids = subject.encode(PROMPT)
    expected = subject.model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[0]
    texts = list(continue_tokens(student_forward(subject, ()), subject.tokenizer, ids, Sampling(20, temperature=0.0)))
    assert PROMPT + texts[-1] == subject.tokenizer.decode(expected, skip_special_tokens=True)
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_a_sampled_text_is_decided_by_the_seed_alone(subject):
    ids = subject.encode(PROMPT)

    def sampled(seed):
        return last(continue_tokens(student_forward(subject, ()), subject.tokenizer, ids, Sampling(20, seed=seed)))

    first = sampled(1)
    torch.manual_seed(99)
    assert sampled(1) == first
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_the_cache_changes_nothing(subject):
    ids = subject.encode(PROMPT)
    cached = student_forward(subject, ())

    seen = []

    def uncached(tokens, cache):
        seen.append(tokens)
        return cached(torch.cat(seen, dim=1), None)[0], None

    settings = Sampling(16, seed=3)
    texts = [last(continue_tokens(forward, subject.tokenizer, ids, settings)) for forward in (cached, uncached)]
    assert texts[0] == texts[1]


def test_tokens_are_sampled_from_the_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5, -2.0])
    generator = torch.Generator().manual_seed(0)
    for sampling in (Sampling(temperature=0.7, top_k=3), Sampling(temperature=1.5, top_k=None)):
        counts = Counter(choose_token(logits, sampling, generator) for _ in range(4000))
        kept = logits if sampling.top_k is None else logits.masked_fill(logits < logits.topk(3).values[-1], -torch.inf)
        expected = (kept / sampling.temperature).softmax(-1)
        for token, share in enumerate(expected.tolist()):
            assert counts[token] / 4000 == pytest.approx(share, abs=0.03)
            assert share > 0 or token not in counts


def test_top_1_and_temperature_0_take_the_likeliest():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    for sampling in (Sampling(top_k=1), Sampling(temperature=0.0)):
        assert choose_token(logits, sampling, generator) == int(logits.argmax())


def test_a_text_ends_with_its_document_and_shows_no_half_characters(subject):
    tokenizer = subject.tokenizer
    wanted = [*tokenizer.encode("é€"), tokenizer.eos_token_id, *tokenizer.encode("never")]
    pieces = iter(wanted)

    def forward(tokens, cache):
        logits = torch.full((len(tokenizer),), -10.0)
        logits[next(pieces)] = 10.0
        return logits, None

    prompt = torch.tensor([tokenizer.encode("caf")])
    texts = list(continue_tokens(forward, tokenizer, prompt, Sampling(CONTEXT, temperature=0.0)))
    assert texts[-1] == "é€"
    assert not any("\ufffd" in text for text in texts)
