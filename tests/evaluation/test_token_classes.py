"""Classes of tokens, on byte-level BPE, SentencePiece and WordPiece."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cocomix.evaluation.loss_slices import TOKEN_CLASSES, TokenClasses, token_texts

END = "<|end|>"


def spelled(pieces: list[str], space: str) -> list[str]:
    """Pieces with a leading space written as a tokenizer of this kind writes it."""
    return [piece.replace(" ", space).replace("\n", "Ċ" if space == "Ġ" else "\n") for piece in pieces]


def tokenizer(kind: str, pieces: list[str]) -> PreTrainedTokenizerFast:
    if kind == "wordpiece":
        names = [piece[1:] if piece.startswith(" ") else f"##{piece}" for piece in pieces]
        backend = Tokenizer(models.WordPiece({name: n for n, name in enumerate(["[UNK]", *dict.fromkeys(names)])}))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        names = spelled(pieces, "Ġ" if kind == "bpe" else "▁")
        backend = Tokenizer(models.BPE({name: n for n, name in enumerate(dict.fromkeys(names))}, []))
        if kind == "bpe":
            backend.pre_tokenizer, backend.decoder = (
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                decoders.ByteLevel(),
            )
        else:
            backend.normalizer, backend.decoder = normalizers.Replace(" ", "▁"), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def classes(kind: str, pieces: list[str]) -> list[str]:
    """The class of every token of a text given as its tokens, spaces in front."""
    made = tokenizer(kind, [piece for piece in pieces if piece != END])
    names = spelled(pieces, "Ġ" if kind == "bpe" else "▁")
    if kind == "wordpiece":
        names = [p if p == END else p[1:] if p.startswith(" ") else f"##{p}" for p in pieces]
    ids = np.array([[made.convert_tokens_to_ids(name) for name in names]])
    assert -1 not in ids
    return [TOKEN_CLASSES[code] for code in TokenClasses(made).of(ids)[0]]


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_a_text_by_hand(kind: str) -> None:
    text = [
        ("The", "function word"),
        (" king", "content word"),
        (" of", "function word"),
        (" Nor", "name"),
        ("way", "continuation"),
        (" un", "word start"),
        ("easy", "continuation"),
        (",", "punctuation"),
        (" don", "content word"),
        ("'t", "function word"),
        (" 19", "digits"),
        ("84", "digits"),
        (".", "punctuation"),
        (' "', "punctuation"),
        ("Paris", "content word"),  # after the full stop, the quote does not count
        (" I", "function word"),
        (" Paris", "name"),
        ("\n", "whitespace"),
        ("Next", "content word"),
        (" x", "content word"),
        (" =", "punctuation"),
        (END, "special"),
        ("King", "content word"),
    ]
    assert list(zip(dict(enumerate(text)).values(), classes(kind, [piece for piece, _ in text]), strict=True)) == [
        (pair, pair[1]) for pair in text
    ]


def test_wordpiece_writes_where_words_go_on() -> None:
    found = classes("wordpiece", [" the", " un", "easy", " king"])
    assert found == ["function word", "word start", "continuation", "content word"]


def test_function_words_that_go_on_are_word_starts() -> None:
    assert classes("bpe", [" the", "rapy", " the"]) == ["word start", "continuation", "function word"]


def test_blocks_do_not_see_one_another() -> None:
    made = tokenizer("bpe", ["way", " Kar", "King"])
    way, king = (made.convert_tokens_to_ids(piece) for piece in ("way", "King"))
    nor = made.convert_tokens_to_ids("ĠKar")
    found = TokenClasses(made).of(np.array([[king, nor], [way, king]]))
    assert [[TOKEN_CLASSES[code] for code in row] for row in found] == [
        ["content word", "name"],
        ["word start", "continuation"],
    ]


def test_parts_of_characters_are_letters() -> None:
    """ "é" of a word, split into its two bytes."""
    made = tokenizer("bpe", [" caf", "Ã", "©"])
    ids = [made.convert_tokens_to_ids(piece) for piece in ("Ġcaf", "Ã", "©")]
    assert [TOKEN_CLASSES[code] for code in TokenClasses(made).of(np.array([ids]))[0]] == [
        "word start",
        "continuation",
        "continuation",
    ]


def test_texts_of_a_trained_tokenizer_join_to_the_text(workshop) -> None:
    from cocomix.data import Tokens

    made = Tokens.open(workshop.data).tokenizer()
    texts = token_texts(made)
    ids = made.encode("the list of items", add_special_tokens=False)
    assert "".join(texts[number] for number in ids) == "the list of items"
    assert texts[made.eos_token_id] == ""
