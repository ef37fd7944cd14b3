"""Token blocks joined with what is stored of them: labels, a teacher's probabilities."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from cocomix.data import TRAIN, DocumentBlocks, MixedData, Tokens
from cocomix.labelling import Concatenated
from cocomix.training.recipe import RunConfig

__all__ = ["JoinedBlocks", "joined_blocks"]


class JoinedBlocks(Dataset[dict[str, torch.Tensor]]):
    """Token blocks joined with what is stored of them: row i has `input_ids` [seq] and, say, `concept_labels`."""

    def __init__(self, tokens: Any, more: Any) -> None:
        self.tokens, self.more = tokens, more

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**self.tokens[index], **self.more[index]}


def joined_blocks(
    recipe: RunConfig,
    data: Tokens,
    beside: Iterable[Concatenated[Any] | None],
    name: str,
    limit: int | None,
) -> Dataset[Any]:
    """A split's blocks, joined with what is stored beside them.

    Args:
        recipe: says whether documents within a block see one another.
        data: the tokens.
        beside: labels and probabilities of the same data; `None` where there are none.
        name: of the split.
        limit: use only the first blocks; of a mixture about so many, of each corpus its share.
    """
    scattered = name == TRAIN
    blocks: Dataset[Any] = data.split(name, scattered=scattered)
    if recipe.document_masks:
        blocks = DocumentBlocks(blocks, data.manifest.eos_token_id, data.manifest.bos_token_id)
    for stored in beside:
        if stored is not None:
            blocks = JoinedBlocks(blocks, stored.split(name, scattered=scattered))
    if limit is not None and limit < len(blocks):  # type: ignore[arg-type]
        chosen = data.first_blocks(name, limit) if isinstance(data, MixedData) else range(limit)
        blocks = Subset(blocks, chosen)
    return blocks
