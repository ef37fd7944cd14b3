import threading
from collections import Counter
from itertools import pairwise

import pytest
import torch

from cocomix.explorer.steer_view import choose_token, continue_text, forward_of, grow_texts
from cocomix.interpret import Sampling
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError
from tests.explorer.conftest import CONTEXT

PROMPT = "the list of"


def final(subject, edits=(), sampling=None, hint=""):
    *_, texts = grow_texts(subject, PROMPT, edits, hint, sampling or Sampling(12))
    return texts


def strongest(subject):
    return int(subject.model(input_ids=subject.encode(PROMPT)).concept_ids[0, -1, 0])


def test_neutral_edits_leave_all_texts_alone_and_strong_ones_do_not(subject):
    concept, sampling = strongest(subject), Sampling(14, seed=2)
    plain = final(subject, (), sampling)
    assert plain.keys() == {"untouched", "teacher"}
    neutral = final(subject, [ConceptEdit(concept, "scale", 1.0)], sampling)
    assert neutral == {**plain, "steered": plain["untouched"]}
    turned = final(subject, [ConceptEdit(concept, "set", 20.0)], sampling)
    assert turned["untouched"] == plain["untouched"] != turned["steered"]


def test_greedy_texts_equal_those_of_generate(subject):
    edits = [ConceptEdit(strongest(subject), "scale", 8.0)]
    texts = final(subject, edits, Sampling(14, temperature=0.0), hint="a key")
    ids, decode = subject.encode(PROMPT), subject.tokenizer.decode
    hinted = subject.encode(f"a key\n{PROMPT}")
    options = {"max_new_tokens": 14, "do_sample": False, "pad_token_id": 0}
    for name, start, extra in (
        ("untouched", ids, {}),
        ("steered", ids, {"concept_edits": tuple(edits)}),
        ("hinted", hinted, {}),
    ):
        whole = decode(subject.model.generate(start, **options, **extra)[0], skip_special_tokens=True)
        assert whole.endswith(PROMPT + texts[name])
    teacher = subject.teacher.decoder.model.generate(ids, **options)[0]
    unturned = final(subject, (), Sampling(14, temperature=0.0))["teacher"]
    assert PROMPT + unturned == decode(teacher, skip_special_tokens=True)


def test_texts_only_grow_and_are_decided_by_the_seed_alone(subject):
    texts = [each["untouched"] for each in grow_texts(subject, PROMPT, (), "", Sampling(20, seed=1))]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    torch.manual_seed(99)
    assert final(subject, (), Sampling(20, seed=1))["untouched"] == texts[-1]
    assert len({final(subject, (), Sampling(20, seed=seed))["untouched"] for seed in range(4)}) > 1


def test_the_cache_changes_nothing(subject):
    cached, seen = forward_of(subject, ()), []

    def uncached(tokens, cache):
        seen.append(tokens)
        return cached(torch.cat(seen, dim=1), None)[0], None

    settings = (subject.encode(PROMPT), subject.tokenizer, Sampling(16, seed=3))
    (*_, one), (*_, other) = continue_text(cached, *settings), continue_text(uncached, *settings)
    assert one == other


def test_two_visitors_at_once_do_not_see_each_other(subject):
    concept = strongest(subject)
    edits = [[ConceptEdit(concept, "set", value)] for value in (20.0, -20.0, 0.0)]
    alone = [final(subject, each) for each in edits]
    together = [None] * len(edits)

    def work(place):
        together[place] = final(subject, edits[place])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(edits))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_closing_stops_the_work_and_frees_the_model(subject, monkeypatch):
    calls = 0
    forward = type(subject.model).forward

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(type(subject.model), "forward", counted)
    texts = grow_texts(subject, PROMPT, [ConceptEdit(3, "ban")], "", Sampling(30, temperature=0.8))
    for _ in range(4):
        next(texts)
    texts.close()
    assert calls == 2 * 3
    assert not subject.lock.locked()


def test_prompt_hint_and_continuation_share_the_context(subject):
    room = CONTEXT - subject.encode(PROMPT).shape[1]
    next(grow_texts(subject, PROMPT, (), "", Sampling(room)))
    for hint, tokens, says in (("", room + 1, f"{room + 1} more"), ("a", room, "hint")):
        with pytest.raises(CoCoMixError, match=says):
            next(grow_texts(subject, PROMPT, (), hint, Sampling(tokens)))


def test_tokens_are_sampled_from_the_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5, -2.0])
    generator = torch.Generator().manual_seed(0)
    for sampling in (Sampling(temperature=0.7, top_k=3), Sampling(temperature=1.5, top_k=None)):
        counts = Counter(choose_token(logits, sampling, generator) for _ in range(4000))
        kept = logits if sampling.top_k is None else logits.masked_fill(logits < logits.topk(3).values[-1], -torch.inf)
        for token, share in enumerate((kept / sampling.temperature).softmax(-1).tolist()):
            assert counts[token] / 4000 == pytest.approx(share, abs=0.03)
            assert share > 0 or token not in counts
    for sampling in (Sampling(top_k=1), Sampling(temperature=0.0)):
        assert choose_token(logits, sampling, generator) == 0


def test_a_text_ends_with_its_document_and_shows_no_half_characters(subject):
    tokenizer = subject.tokenizer
    pieces = iter([*tokenizer.encode("é€"), tokenizer.eos_token_id, *tokenizer.encode("never")])

    def forward(tokens, cache):
        logits = torch.full((len(tokenizer),), -10.0)
        logits[next(pieces)] = 10.0
        return logits, None

    prompt = torch.tensor([tokenizer.encode("caf")])
    texts = list(continue_text(forward, prompt, tokenizer, Sampling(CONTEXT, temperature=0.0)))
    assert texts[-1] == "é€"
    assert not any("\ufffd" in text for text in texts)
