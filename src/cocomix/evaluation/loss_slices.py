"""Where a loss falls: the loss of every predicted token in a table, and its means over slices of that table.

A slice is one value of one of four columns: `token_class` (see `token_classes`), `position` in the block (bands that
double), `frequency` (occurrences of the token in the training blocks, bands of ten) and `seen` (whether the token
occurred earlier in the context).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cocomix.evaluation.run_inputs import RunBlocks
from cocomix.evaluation.token_classes import TOKEN_CLASSES, TokenClasses

SLICES = ("token_class", "position", "frequency", "seen")
FREQUENCIES = ("0", "1-9", "10-99", "100-999", "1,000-9,999", "10,000 or more")

Floats = NDArray[np.float64]


def token_table(
    blocks: RunBlocks,
    losses: NDArray[np.float32],
    classes: TokenClasses,
    references: Mapping[str, Floats] | None,
    training_counts: NDArray[np.int64] | None,
) -> pd.DataFrame:
    """One row per predicted token, in the order of the text.

    Args:
        losses: nats; NaN where a token is not predicted. [blocks, block_size]
        references: losses of n-gram models by name, one per predicted token.
        training_counts: occurrences of each token of the vocabulary in the training blocks.
    """
    asked = blocks.depth > 0
    block, position = np.nonzero(asked)
    tokens = blocks.ids[asked]
    values: dict[str, Any] = {
        "block": block.astype(np.int32),
        "position": position.astype(np.int16),
        "document": blocks.documents[asked].astype(np.int32),
        "token": tokens.astype(np.int32),
        "loss": losses[asked],
        "token_class": pd.Categorical.from_codes(classes.of(blocks.ids)[asked], list(TOKEN_CLASSES)),
        "frequency": pd.Categorical.from_codes(_bands(training_counts, tokens), list(FREQUENCIES), ordered=True),
        "seen": seen_before(blocks.ids, np.cumsum(blocks.depth == 0).reshape(blocks.ids.shape))[asked],
    }
    return pd.DataFrame(values | {name: each.astype(np.float32) for name, each in (references or {}).items()})


def _bands(counts: NDArray[np.int64] | None, tokens: NDArray[np.int64]) -> NDArray[np.int8]:
    """Place in `FREQUENCIES`; −1: not known."""
    if counts is None:
        return np.full(len(tokens), -1, dtype=np.int8)
    edges = 10 ** np.arange(len(FREQUENCIES) - 1)
    return np.searchsorted(edges, counts, side="right").astype(np.int8)[tokens]


def seen_before(tokens: NDArray[Any], context: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each token stands earlier in its context, of which each has a number. [blocks, block_size]"""
    keys = (context * (int(tokens.max(initial=0)) + 1) + tokens).ravel()
    seen = np.ones(keys.shape, dtype=bool)
    seen[np.unique(keys, return_index=True)[1]] = False
    return seen.reshape(tokens.shape)


def loss_slices(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Tokens and mean loss (nats) of every slice that has a token, as JSON."""
    found = []
    for name in SLICES:
        grouped = table.groupby(slice_values(table, name), observed=True)["loss"].agg(["size", "mean"])
        found += [
            {"slice": name, "value": str(value), "tokens": int(row["size"]), "loss": float(row["mean"])}
            for value, row in grouped.iterrows()
        ]
    return found


def slice_values(table: pd.DataFrame, name: str) -> Any:
    """The value by which a table is grouped."""
    if name == "seen":
        return table["seen"].map({True: "yes", False: "no"})
    if name != "position":
        return table[name]
    edges = [2**power for power in range(int(table["position"].max()).bit_length() + 1)]
    names = [f"{low}-{2 * low - 1}" if low > 1 else "1" for low in edges[:-1]]
    return pd.cut(table["position"], edges, right=False, labels=names)
