"""Losses by document: what a paired test of two models needs, saved beside a run's evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor

from cocomix.artifacts import read_json, write_json
from cocomix.runtime.errors import CoCoMixError

__all__ = ["DOCUMENTS_FILE", "DocumentLosses", "DocumentTally", "read_document_losses", "write_document_losses"]

DOCUMENTS_FILE = "document_losses.json"
"""Name of the file within the run's folder."""


class DocumentTally:
    """Sums next-token losses over the documents that were packed into blocks.

    A document ends with its end-of-document token and may reach over several blocks. The first token of a block is
    never predicted, so a document loses one target at each block boundary, where no begin-of-text token stands there;
    a document without any target is left out.

    Args:
        eos_token_id: the end-of-document token.
        bos_token_id: what every block begins with, which ends no document; `None` where that is text.
    """

    def __init__(self, eos_token_id: int, bos_token_id: int | None = None) -> None:
        self.eos_token_id, self.bos_token_id = eos_token_id, bos_token_id
        self._ended = 0
        self._losses = torch.zeros(0, dtype=torch.float64)
        self._targets = torch.zeros(0, dtype=torch.float64)

    def add(self, input_ids: Tensor, losses: Tensor, counted: Tensor | None = None) -> None:
        """Add consecutive blocks.

        Args:
            input_ids: tokens. [batch, seq], int64
            losses: of the tokens from the second on, nats. [batch, seq − 1], float64, on the CPU
            counted: which of them are targets; by default all. [batch, seq − 1], bool
        """
        ended = input_ids == self.eos_token_id
        if self.bos_token_id is not None:
            ended[:, 0] = False
        ends = ended.cpu().flatten().long()
        document = self._ended + ends.cumsum(0) - ends  # an end belongs to the document that it ends
        self._ended += int(ends.sum())
        target_documents = document.view(input_ids.shape)[:, 1:].flatten()
        known = self._ended + 1
        padded = torch.zeros(2, known, dtype=torch.float64)
        padded[:, : len(self._losses)] = torch.stack((self._losses, self._targets))
        padded[0].index_add_(0, target_documents, losses.flatten())
        ones = torch.ones_like(losses) if counted is None else counted.cpu().double()
        padded[1].index_add_(0, target_documents, ones.flatten())
        self._losses, self._targets = padded[0], padded[1]

    def result(self) -> tuple[list[float], list[int]]:
        """Summed loss and number of targets of every document that has a target, in the order of the text."""
        kept = self._targets > 0
        return self._losses[kept].tolist(), [int(count) for count in self._targets[kept].tolist()]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    data_fingerprint: str
    split: str
    blocks: int
    dtype: str
    losses: list[float]
    targets: list[int]

    @model_validator(mode="after")
    def _of_equal_length(self) -> "_File":
        if len(self.losses) != len(self.targets):
            raise ValueError("losses and targets differ in length")
        return self


@dataclass(frozen=True)
class DocumentLosses:
    """A run's losses by document.

    Attributes:
        conditions: what two runs must share to be compared: data, split, blocks, precision.
        losses: summed next-token losses, nats. [documents], float64
        targets: tokens predicted. [documents], float64
    """

    conditions: tuple[str, str, int, str]
    losses: NDArray[np.float64]
    targets: NDArray[np.float64]


def write_document_losses(
    folder: Path, tally: DocumentTally, *, data_fingerprint: str, split: str, blocks: int, dtype: str
) -> None:
    """Write a tally and what it is of to `DOCUMENTS_FILE` in a run's folder."""
    losses, targets = tally.result()
    identity: dict[str, Any] = {"data_fingerprint": data_fingerprint, "split": split, "blocks": blocks, "dtype": dtype}
    write_json(folder / DOCUMENTS_FILE, _File(**identity, losses=losses, targets=targets).model_dump())


def read_document_losses(folder: Path) -> DocumentLosses | None:
    """Read a run's losses by document; `None` where they were not measured.

    Raises:
        CoCoMixError: the file is damaged.
    """
    path = folder / DOCUMENTS_FILE
    if not path.is_file():
        return None
    try:
        found = _File.model_validate(read_json(path))
    except ValidationError as error:
        raise CoCoMixError(f"{path} is damaged ({error.errors()[0]['msg']}); measure the run again.") from error
    return DocumentLosses(
        conditions=(found.data_fingerprint, found.split, found.blocks, found.dtype),
        losses=np.asarray(found.losses, dtype=np.float64),
        targets=np.asarray(found.targets, dtype=np.float64),
    )
