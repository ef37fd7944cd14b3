"""Where a loss falls: the loss of every predicted token in a table, and its means over slices of that table.

A slice is one value of one of four columns: `token_class` (see `TokenClasses`), `position` in the block (bands that
double), `frequency` (occurrences of the token in the training blocks, bands of ten) and `seen` (whether the token
occurred earlier in the context).
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from cocomix.evaluation.run_inputs import RunBlocks
from cocomix.runtime.byte_level import bytes_of
from cocomix.runtime.section import Record

SliceName = Literal["token_class", "position", "frequency", "seen"]
SLICES: dict[SliceName, str] = {
    "token_class": "kind of token",
    "position": "position in the block",
    "frequency": "times in the training text",
    "seen": "seen before in the context",
}
"""Columns, and what they are called in tables."""

FREQUENCIES = ("0", "1-9", "10-99", "100-999", "1,000-9,999", "10,000 or more")

Floats = NDArray[np.float64]

TOKEN_CLASSES = (
    "function word", "content word", "word start", "continuation", "name", "digits", "punctuation", "whitespace",
    "special",
)  # fmt: skip

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those each every either neither some any no all both half such what which whose another
    i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our ours
    ourselves they them their theirs themselves one who whom whoever whatever something anything nothing everything
    someone anyone nobody everyone there here
    and or but nor so yet if then else because although though while whereas unless until since as than whether when
    where why how
    of in to for with on at by from about into over after under above below between through during before against
    among within without along across behind beyond near off out up down upon toward towards around per via despite
    except like
    be am is are was were been being have has had having do does did doing done can could will would shall should may
    might must ought
    not n't 's 't 're 've 'll 'd 'm also just only even still too very more most less least much many
    few other own same again ever never always already
    """.split()  # noqa: SIM905  # shorter than a list
)

_CLOSING = "\"'“”‘’«»()[]{}*_` \t"


def token_texts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The text of every token of a vocabulary, its leading space included; empty for special tokens and gaps."""
    added = tokenizer.added_tokens_decoder
    pieces: dict[str, int] = tokenizer.get_vocab()
    wordpiece = any(piece.startswith("##") for piece in pieces) and not any("Ġ" in piece for piece in pieces)
    byte_level = not any(piece.startswith("▁") for piece in pieces)
    texts = [""] * (max([*pieces.values(), *added], default=-1) + 1)
    for piece, number in pieces.items():
        if number in added:
            texts[number] = "" if added[number].special else added[number].content
        elif wordpiece:
            texts[number] = piece[2:] if piece.startswith("##") else f" {piece}"
        elif byte_level:
            texts[number] = bytes_of(piece).decode("utf-8", errors="replace")
        elif len(piece) == 6 and piece.startswith("<0x"):
            texts[number] = bytes([int(piece[3:5], 16)]).decode("utf-8", errors="replace")
        else:
            texts[number] = piece.replace("▁", " ")
    return texts


class TokenClasses:
    """What kind of token each token of a text is, by a rule that needs no model.

    A token is spelled out (bytes of byte-level BPE, "▁" of SentencePiece, "##" of WordPiece) and looked at with its
    neighbours in the block. The first of these that holds is its class:

    - `special`: no text (end of document, begin of text, padding).
    - `whitespace`: spaces, tabs and line breaks only.
    - `digits`: the first character that is no space is a digit.
    - `punctuation`: neither a letter nor a digit in it; operators and brackets of code are here.
    - `continuation`: goes on with the word of the token before: no space in front, and a letter, digit or apostrophe
      there.
    - `name`: begins a word with a capital, and not a sentence. A sentence begins after `.`, `!`, `?`, `:`, a line
      break, a special token or the edge of the block; quotes and brackets between do not count. "I" is a function word.
    - `word start`: begins a word that the next token goes on with.
    - `function word`: a whole word of `FUNCTION_WORDS` (English articles, prepositions, pronouns, auxiliaries, …).
    - `content word`: any other whole word.

    The last token of a block is taken to end its word. In scripts without spaces nearly every token is a continuation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        texts = token_texts(tokenizer)
        bare = [text.lstrip() for text in texts]
        # "\ufffd" stands for a part of a character of several bytes, which is most often a letter.
        wordlike = [any(character.isalnum() or character == "\ufffd" for character in text) for text in bare]

        def flags(values: Iterable[bool]) -> NDArray[np.bool_]:
            return np.array(list(values), dtype=bool)

        self._empty = flags(not text for text in texts)
        self._blank = flags(bool(text) and not text.strip() for text in texts)
        self._digit = flags(text[:1].isdigit() for text in bare)
        self._word = flags(wordlike) & ~self._digit
        self._joins = flags(text[:1].isalpha() or text[:1] == "\ufffd" for text in texts)
        self._capital = flags(text[:1].isupper() for text in bare)
        self._function = flags(text.lower().replace("’", "'") in FUNCTION_WORDS for text in bare)
        self._contraction = self._function & flags(text[:1] in ("'", "’") for text in texts)
        self._goes_on = flags(
            text[-1:].isalnum() or text[-1:] in ("'", "’", "\ufffd") for text in (text or " " for text in texts)
        )
        self._transparent = flags(bool(text) and not text.strip(_CLOSING) for text in texts)
        ends = flags("\n" in text or text.rstrip(_CLOSING)[-1:] in tuple(".!?:") for text in texts)
        self._ends_sentence = self._empty | (ends & ~self._transparent)

    def of(self, ids: NDArray[np.integer]) -> NDArray[np.int8]:
        """Place in `TOKEN_CLASSES` of every token of some blocks. [blocks, block_size] both"""
        before = np.roll(ids, 1, axis=1)
        inside = self._joins[ids] & self._goes_on[before]
        inside[:, 0] = False
        goes_on = np.roll(inside, -1, axis=1)
        goes_on[:, -1] = False
        # the last token before each that is not transparent; -1: the edge of the block
        places = np.where(self._transparent[ids], -1, np.arange(ids.shape[1]))
        last = np.maximum.accumulate(places, axis=1)
        last = np.concatenate((np.full((len(ids), 1), -1), last[:, :-1]), axis=1)
        begins = (last < 0) | self._ends_sentence[np.take_along_axis(ids, last.clip(0), axis=1)]
        function = self._function[ids] & ~goes_on | self._contraction[ids]
        rules = {
            "special": self._empty[ids],
            "whitespace": self._blank[ids],
            "digits": self._digit[ids],
            "punctuation": ~self._word[ids],
            "continuation": inside,
            "name": self._capital[ids] & ~begins & ~function,
            "word start": goes_on,
            "function word": function,
            "content word": np.ones(ids.shape, dtype=bool),
        }
        codes = [TOKEN_CLASSES.index(name) for name in rules]
        return np.select(list(rules.values()), codes).astype(np.int8)


def token_table(
    blocks: RunBlocks,
    losses: NDArray[np.float32],  # nats; NaN where a token is not predicted. [blocks, block_size]
    classes: TokenClasses,
    references: Mapping[str, Floats] | None,  # losses of n-gram models by name, one per predicted token
    training_counts: NDArray[np.int64] | None,  # occurrences of each token of the vocabulary in the training blocks
) -> pd.DataFrame:
    """One row per predicted token, in the order of the text."""
    asked = blocks.depth > 0
    block, position = np.nonzero(asked)
    tokens = blocks.ids[asked]
    bands = np.full(len(tokens), -1)  # not known
    if training_counts is not None:
        bands = np.searchsorted(10 ** np.arange(len(FREQUENCIES) - 1), training_counts, side="right")[tokens]
    values: dict[str, Any] = {
        "block": block.astype(np.int32),
        "position": position.astype(np.int16),
        "document": blocks.documents[asked].astype(np.int32),
        "token": tokens.astype(np.int32),
        "loss": losses[asked],
        "token_class": pd.Categorical.from_codes(classes.of(blocks.ids)[asked], list(TOKEN_CLASSES)),
        "frequency": pd.Categorical.from_codes(bands, list(FREQUENCIES), ordered=True),
        "seen": seen_before(blocks.ids, np.cumsum(blocks.depth == 0).reshape(blocks.ids.shape))[asked],
    }
    return pd.DataFrame(values | {name: each.astype(np.float32) for name, each in (references or {}).items()})


def seen_before(tokens: NDArray[Any], context: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each token stands earlier in its context, of which each has a number. [blocks, block_size]"""
    keys = pd.Series((context * (int(tokens.max(initial=0)) + 1) + tokens).ravel())
    seen: NDArray[np.bool_] = keys.duplicated().to_numpy().reshape(tokens.shape)
    return seen


class LossSlice(Record):
    """Mean loss over some of the tokens."""

    slice: SliceName  # column of `losses.parquet`
    value: str
    tokens: int
    loss: float  # nats per token


def loss_slices(table: pd.DataFrame) -> tuple[LossSlice, ...]:
    """Every slice that has a token."""
    found: list[LossSlice] = []
    for name in SLICES:
        grouped = table.groupby(slice_values(table, name), observed=True)["loss"].agg(["size", "mean"])
        found += [
            LossSlice(slice=name, value=str(value), tokens=int(row["size"]), loss=row["mean"])
            for value, row in grouped.iterrows()
        ]
    return tuple(found)


def slice_values(table: pd.DataFrame, name: str) -> Any:
    """The value by which a table is grouped."""
    if name == "seen":
        return table["seen"].map({True: "yes", False: "no"})
    if name != "position":
        return table[name]
    edges = [2**power for power in range(int(table["position"].max()).bit_length() + 1)]
    names = [f"{low}-{2 * low - 1}" if low > 1 else "1" for low in edges[:-1]]
    return pd.cut(table["position"], edges, right=False, labels=names)
