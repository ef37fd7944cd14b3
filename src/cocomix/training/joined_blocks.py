"""Token blocks joined with what is stored of them: labels, a teacher's probabilities."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from cocomix.data import TRAIN, DocumentBlocks, MixedData, Tokens
from cocomix.labelling import Concatenated
from cocomix.training.recipe import RunConfig


class JoinedBlocks(Dataset[dict[str, torch.Tensor]]):
    """Token blocks joined with what is stored of them: row i has `input_ids` [seq] and, say, `concept_labels`.

    Args:
        tokens: rows with `input_ids`.
        stored: further rows of the same blocks by one of their columns. They may be fewer than the tokens: of the first
            blocks only.
    """

    def __init__(self, tokens: Any, stored: Mapping[str, Any]) -> None:
        self.tokens, self.stored = tokens, dict(stored)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = dict(self.tokens[index])
        for blocks in self.stored.values():
            row |= blocks[index]
        return row

    def only(self, needs: frozenset[str]) -> "JoinedBlocks":
        """The same blocks, of which only what is needed is read."""
        return JoinedBlocks(self.tokens, {column: rows for column, rows in self.stored.items() if column in needs})


def joined_blocks(
    recipe: RunConfig,
    data: Tokens,
    beside: Mapping[str, Concatenated[Any] | None],
    name: str,
    limit: int | None,
) -> Dataset[Any]:
    """A split's blocks, joined with what is stored beside them.

    Args:
        recipe: says whether documents within a block see one another.
        beside: labels and probabilities of the same data by one of their columns; `None` where there are none.
        limit: use only the first blocks; of a mixture about so many, of each corpus its share.
    """
    scattered = name == TRAIN
    blocks: Dataset[Any] = data.split(name, scattered=scattered)
    if recipe.document_masks:
        blocks = DocumentBlocks(blocks, data.manifest.eos_token_id, data.manifest.bos_token_id)
    found = {column: stored for column, stored in beside.items() if stored is not None}
    if found:
        blocks = JoinedBlocks(blocks, {of: stored.split(name, scattered=scattered) for of, stored in found.items()})
    if limit is not None and limit < len(blocks):  # type: ignore[arg-type]
        chosen = data.first_blocks(name, limit) if isinstance(data, MixedData) else range(limit)
        blocks = Subset(blocks, chosen)
    return blocks
