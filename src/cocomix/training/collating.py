"""From rows of a data set to a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cocomix.concepts import drop_without_target

COLUMNS: dict[str, torch.dtype | None] = {
    **dict.fromkeys(("input_ids", "labels", "attention_mask", "position_ids"), torch.int64),
    **dict.fromkeys(("concept_labels", "teacher_ids", "teacher_lengths"), torch.int64),
    "teacher_log_probs": None,
}
"""What a batch is made of, and its types; None leaves a column's as it is."""


def collate_blocks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack dataset rows into a batch; `labels` are the `input_ids` unless the rows bring their own.

    Concept labels of positions without a target are left out.

    Args:
        rows: each with `input_ids` [seq] and, optionally, `labels` and `position_ids` [seq], `concept_labels`
            [seq, k_attr], `teacher_ids` [seq, K] and `teacher_lengths` [seq], integers of any kind, and
            `teacher_log_probs` [seq, K] or [seq].

    Returns:
        int64 tensors [batch, …], but for `teacher_log_probs`, which stay as they are.
    """
    batch: dict[str, Any] = {
        name: torch.stack([torch.as_tensor(row[name], dtype=COLUMNS[name]) for row in rows])
        for name in rows[0]
        if name in COLUMNS
    }
    batch.setdefault("labels", batch["input_ids"])
    if "concept_labels" in batch:
        batch["concept_labels"] = drop_without_target(batch["concept_labels"], batch["labels"])
    return batch
