import numpy as np
import pytest

from cocomix.interpret.atlas_pass import token_properties
from cocomix.interpret.inspection import Words, lifted_words, visible


def test_tokens_of_a_word_share_it(world):
    text = "the café items(of) lists"
    tokens = np.array([world.tokenizer.encode(text)])
    words = Words.of(world.tokenizer, tokens)
    shown = [words.texts[word] for word in words.ids[0]]
    pieces = [world.tokenizer.decode([token]) for token in tokens[0]]
    assert len(shown) == len(pieces)
    assert {"the", "café", "items", "(", "of", ")", "lists"} <= set(shown)
    assert "\ufffd" not in "".join(words.texts)


def lifts(rows, concepts, positions, **settings):
    texts = tuple(sorted({word for row in rows for word in row}))
    ids = np.array([[texts.index(word) for word in row] for row in rows], dtype=np.int32)
    words = Words(ids, texts, np.arange(ids.shape[1]) > np.zeros_like(ids))
    return lifted_words(
        words, np.array(concepts, dtype=int), np.array(positions, dtype=int), **{"limit": 3, "least": 2, **settings}
    )


def test_lift_is_the_share_here_over_the_share_everywhere():
    rows = [["the", "list", "the", "box"], ["the", "list", "the", "of"]]
    found = lifts(rows, [5, 5, 5, 5], [0, 1, 4, 5])
    here, after = found[5]
    assert here == (("list", pytest.approx((2 / 4) / (2 / 8))),)  # "the": 2/4 over 4/8 is no lift
    assert dict(after) == {"list": pytest.approx((2 / 4) / (2 / 6)), "the": pytest.approx((2 / 4) / (2 / 6))}


def test_what_follows_stops_at_the_end_of_a_document(world):
    """The words that the next document of a packed block begins with followed the concepts at a document's end."""
    first, second = (world.tokenizer.encode(text) for text in ("the list", " items"))
    block = np.array([[*first, world.tokenizer.eos_token_id, *second] * 4])
    ends = np.flatnonzero(block[0] == world.tokenizer.eos_token_id)
    positions = np.concatenate([ends, ends - 1])
    words = Words.of(world.tokenizer, block)
    _, after = lifted_words(words, np.zeros_like(positions), positions, limit=9, least=1)[0]
    assert after == ()
    begins_so = [*first, world.tokenizer.eos_token_id, *world.tokenizer.encode("(list")]
    assert not token_properties(world.tokenizer, np.array([begins_so]))["punctuation next"].any()


def test_rare_words_name_nothing():
    rows = [["a"] * 100 + ["rare", "rare", "rare"] + ["b"] * 100]
    once, _ = lifts(rows, [1] * 3, [100, 101, 3], least=3)[1]
    assert once == ()
    many, _ = lifts(rows, [1] * 203, list(range(203)), least=3)[1]  # 3 of 203 positions are less than 2%
    assert "rare" not in dict(many)
    most, _ = lifts(rows, [1] * 103, list(range(103)), least=3)[1]
    assert list(dict(most)) == ["a", "rare"] or list(dict(most)) == ["rare", "a"]


def test_nothing_has_no_words():
    assert lifts([["a", "b"]], [], []) == {}


def test_visible_shows_what_cannot_be_seen():
    assert visible(" a\n\tb") == "·a↵⇥b"
    assert visible("\x1b[31m\u200b") == "\\x1b[31m\\u200b"
