"""Blocks whose documents stand alone: where each begins, so that attention and targets stop there."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cocomix.runtime.ignore import IGNORE


def document_positions(input_ids: Tensor, eos_token_id: int, bos_token_id: int | None = None) -> Tensor:
    """Position of every token in its document, counted from the document's first token in the block.

    A document ends with its end-of-document token; the part of a document that a block begins with counts from 0. What
    every block begins with belongs to that part, even where it is the end-of-document token itself, as in GPT-2.

    Args:
        input_ids: tokens of a block. [seq], int64
        eos_token_id: the end-of-document token.
        bos_token_id: what every block begins with; `None` where that is text.

    Returns:
        Positions [seq], int64; 0 at the start of every document.
    """
    index = torch.arange(len(input_ids))
    begins = torch.zeros_like(index)
    begins[1:] = torch.where(input_ids[:-1] == eos_token_id, index[1:], 0)
    if bos_token_id is not None:
        begins[1:2] = 0
    return index - begins.cummax(0).values


def positions_of_rows(input_ids: Tensor, eos_token_id: int, bos_token_id: int | None = None) -> Tensor:
    """`document_positions` of several blocks. [batch, seq], int64, from [batch, seq]"""
    return torch.stack([document_positions(row, eos_token_id, bos_token_id) for row in input_ids])


class DocumentBlocks(Dataset[dict[str, Tensor]]):
    """Blocks with `position_ids` that start again at every document, and `labels` that leave its first token out.

    Decoders of transformers read positions that start again as documents that must not see each other.

    Args:
        blocks: rows with `input_ids` [seq]; whatever else is in a row stays.
        eos_token_id: the end-of-document token.
        bos_token_id: what every block begins with; the first document of a block sees it, the others do not.
    """

    def __init__(self, blocks: Any, eos_token_id: int, bos_token_id: int | None = None) -> None:
        self.blocks, self.eos_token_id, self.bos_token_id = blocks, eos_token_id, bos_token_id

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.blocks[index]
        positions = document_positions(row["input_ids"], self.eos_token_id, self.bos_token_id)
        return {**row, "position_ids": positions, "labels": row["input_ids"].masked_fill(positions == 0, IGNORE)}
