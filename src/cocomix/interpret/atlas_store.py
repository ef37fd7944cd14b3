"""The file behind an atlas: its tables, how rows are written and how texts are cut out of blocks.

ATLAS/
manifest.json   what it is of and how it was made (`AtlasManifest`)
atlas.sqlite    tables: concepts (a row per concept); contexts (where a concept shows: block and position, no
text); blocks (the tokens of the blocks that contexts lie in, uint32, little-endian); texts
(full-text index, FTS5, over name, terms and the strongest contexts; rowid = concept)
tokenizer/      turns the blocks' tokens into text
"""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from cocomix.interpret.atlas_cards import TokenChanges
from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "DATABASE",
    "LABEL",
    "PREDICTED",
    "TOKENIZER",
    "Cut",
    "create_tables",
    "cut",
    "pack_changes",
    "pack_tokens",
    "unpack_changes",
    "unpack_tokens",
]

DATABASE, TOKENIZER = "atlas.sqlite", "tokenizer"
PREDICTED, LABEL = 0, 1
"""Kinds of contexts."""

_TABLES = """
CREATE TABLE IF NOT EXISTS concepts (
    id INTEGER PRIMARY KEY,
    name TEXT,
    terms TEXT,
    predicted_count INTEGER NOT NULL,
    positive_count INTEGER NOT NULL,
    label_count INTEGER NOT NULL,
    hits INTEGER NOT NULL,
    mean_logit REAL,
    max_logit REAL,
    histogram BLOB NOT NULL,
    compression_norm REAL,
    nearest TEXT NOT NULL,
    effect_amount REAL,
    raised TEXT,
    lowered TEXT,
    named_by_endpoint INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS contexts (
    concept INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    strength REAL NOT NULL,
    block INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (concept, kind, rank)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (
    id INTEGER PRIMARY KEY,
    split TEXT NOT NULL,
    block INTEGER NOT NULL,
    tokens BLOB NOT NULL
);
CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5 (
    name, terms, contexts, tokenize = "unicode61 remove_diacritics 2"
);
"""


class Cut(NamedTuple):
    """A token in its surroundings; put together the texts read as the block does there, up to cut characters."""

    before: str
    token: str
    after: str


def create_tables(database: sqlite3.Connection) -> None:
    """Create the tables that are not there yet.

    Raises:
        CoCoMixError: this Python's SQLite has no full-text search.
    """
    try:
        database.executescript(_TABLES)
    except sqlite3.OperationalError as error:
        if "fts5" not in str(error):
            raise
        raise CoCoMixError("this Python's SQLite has no full-text search (FTS5); use a Python that has it.") from error


def cut(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], position: int, window: int) -> Cut:
    """The text of a token, and of up to `window` tokens of the block on either side."""
    start = max(0, position - window)
    before: str = tokenizer.decode(tokens[start:position])
    token = _continued(tokenizer, before, tokens[start:position], tokens[position : position + 1])
    after = _continued(
        tokenizer, before + token, tokens[start : position + 1], tokens[position + 1 : position + 1 + window]
    )
    return Cut(before, token, after)


def _continued(tokenizer: PreTrainedTokenizerBase, text: str, tokens: Sequence[int], more: Sequence[int]) -> str:
    """The text of `more` after `tokens`, the space at the border kept; on its own where a character is cut there."""
    whole: str = tokenizer.decode([*tokens, *more])
    if whole.startswith(text):
        return whole[len(text) :]
    alone: str = tokenizer.decode(list(more))
    return alone


def pack_tokens(tokens: NDArray[Any]) -> bytes:
    """Tokens of a block as stored."""
    return tokens.astype("<u4").tobytes()


def unpack_tokens(stored: bytes) -> list[int]:
    """The inverse of `pack_tokens`."""
    tokens: list[int] = np.frombuffer(stored, dtype="<u4").tolist()
    return tokens


def pack_changes(changes: TokenChanges) -> str:
    """Tokens and nats as stored."""
    return json.dumps(changes, ensure_ascii=False)


def unpack_changes(stored: str | None) -> TokenChanges | None:
    """The inverse of `pack_changes`; `None` stays `None`."""
    return None if stored is None else tuple((token, nats) for token, nats in json.loads(stored))
