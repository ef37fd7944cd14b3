"""Words by lift: those whose share among some positions is furthest above their share everywhere.

lift(word | concept) = (n_word,concept / n_concept) / (n_word / n). Frequency alone would name every concept by the
corpus' commonest words; the logarithm of the lift is their pointwise mutual information.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from cocomix.interpret.atlas_cards import WordLifts
from cocomix.interpret.atlas_pass import Array

_LEAST_SHARE = 0.02
"""Of a concept's positions that must hold a word: else any rare word that only stands there would come first."""
_LEAST_LIFT = 1.5
"""Below it a word is about as common everywhere: a concept that is always there has no typical word."""
_LONGEST = 32
"""Letters; longer strings (keys, hashes) are cut."""
_HIDDEN = {" ": "·", "\n": "↵", "\t": "⇥"}


def visible(text: str) -> str:
    """A token's text with the invisible made visible: spaces as ·, line breaks as ↵, tabs as ⇥, the rest escaped."""
    return "".join(
        _HIDDEN.get(letter) or (letter if letter.isprintable() else letter.encode("unicode_escape").decode())
        for letter in text
    )


@dataclass(frozen=True)
class Words:
    """The word at every position of some blocks; tokens of one word share it."""

    ids: Array  # index into `texts`. int32 [blocks, seq]
    # words in lower case; what has no letter or digit stands for itself, made visible; special tokens are ""
    texts: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, tokens: Array) -> "Words":
        """Join tokens to words: a word is a run of tokens without white space or punctuation between them."""
        pieces = {int(token): tokenizer.decode([int(token)]) for token in np.unique(tokens)}
        joins = {token: _wordlike(piece[:1]) for token, piece in pieces.items()}
        blank = {token: bool(piece) and not piece.strip(" ") for token, piece in pieces.items()}
        goes_on = {token: _wordlike(piece[-1:]) or blank[token] for token, piece in pieces.items()}
        known: dict[tuple[int, ...], int] = {}
        texts: dict[str, int] = {}
        ids = np.empty(tokens.shape, dtype=np.int32)
        for row, block in zip(ids, tokens.tolist(), strict=True):
            start = 0
            for end in range(1, len(block) + 1):
                if end < len(block) and joins[block[end]] and goes_on[block[end - 1]]:
                    continue
                word = tuple(block[start:end])
                if word not in known:
                    text = tokenizer.decode(list(word), skip_special_tokens=True)
                    shown = visible(text.strip().lower() or text)[:_LONGEST]
                    known[word] = texts.setdefault(shown, len(texts))
                row[start:end] = known[word]
                start = end
        return cls(ids, tuple(texts))


def _wordlike(letter: str) -> bool:
    """Whether a letter continues a word; a part of a character (U+FFFD) does."""
    return letter.isalnum() or letter in ("_", "\ufffd")


def lifted_words(
    words: Words, concepts: Array, positions: Array, *, limit: int, least: int
) -> dict[int, tuple[WordLifts, WordLifts]]:
    """The words of highest lift at the positions of each concept, and those of the tokens that follow them.

    Args:
        concepts: int [n], a concept per entry.
        positions: int [n], where it is, counted over all blocks.
        least: positions of a concept at which a word must stand; 2% of them, if that is more.

    Returns:
        (words, following words) with their lifts of at least 1.5, highest first, by concept.
    """
    seq = words.ids.shape[1]
    inside = positions % seq < seq - 1  # the last token of a block has no next one here
    here = _lifts(words, words.ids.ravel(), concepts, words.ids.ravel()[positions], limit, least)
    after = words.ids[:, 1:].ravel()
    follows = words.ids.ravel()[positions[inside] + 1]
    there = _lifts(words, after, concepts[inside], follows, limit, least)
    return {concept: (here.get(concept, ()), there.get(concept, ())) for concept in np.unique(concepts).tolist()}


def _lifts(
    words: Words, everywhere: Array, concepts: Array, found: Array, limit: int, least: int
) -> dict[int, WordLifts]:
    """Words by lift for each concept that has any: `found` are the words at the concepts' places."""
    if len(concepts) == 0:
        return {}
    base = np.bincount(everywhere, minlength=len(words.texts)) / max(1, len(everywhere))
    pairs = pd.DataFrame({"concept": concepts, "word": found}).value_counts().rename("count").reset_index()
    share = pairs["count"] / pairs.groupby("concept")["count"].transform("sum")
    pairs["lift"] = share / base[pairs["word"]]
    worded = pairs["word"].map(lambda word: bool(words.texts[word]))
    kept = pairs[worded & (pairs["count"] >= least) & (share >= _LEAST_SHARE) & (pairs["lift"] >= _LEAST_LIFT)]
    order = kept.sort_values(["concept", "lift", "count", "word"], ascending=[True, False, False, True])
    lists: dict[int, list[tuple[str, float]]] = {}
    for row in order.groupby("concept").head(limit).itertuples():
        lists.setdefault(row.concept, []).append((words.texts[row.word], row.lift))
    return {concept: tuple(lifts) for concept, lifts in lists.items()}
