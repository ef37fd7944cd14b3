"""Labellers that learn tables from a first pass over a sample of the corpus: keeping, checking and hashing them."""

from collections.abc import Mapping
from copy import copy
from typing import ClassVar, Self

import torch
from torch import Tensor

from cocomix.artifacts import fingerprint_json, tensor_sha256
from cocomix.runtime.errors import CoCoMixError


class TableLabeller:
    """A labeller with tables. `fit` it or give it tables before it labels.

    Args:
        sample_tokens: tokens of the training split that the tables are learned from.
    """

    kind: ClassVar[str]
    algorithm: ClassVar[str]
    """Raised whenever the same settings and tables would give other labels than before."""
    shapes: ClassVar[Mapping[str, torch.dtype]]
    """Names of the tables and their types."""

    def __init__(self, *, sample_tokens: int) -> None:
        self.sample_tokens = sample_tokens
        self._tables: dict[str, Tensor] = {}

    def tables(self) -> dict[str, Tensor]:
        """What was learned; empty before `fit`."""
        return dict(self._tables)

    def with_tables(self, tables: Mapping[str, Tensor]) -> Self:
        """A labeller with the tables of an earlier `fit`.

        Raises:
            CoCoMixError: they are not of this kind, or of another vocabulary.
        """
        for name, dtype in self.shapes.items():
            if name not in tables or tables[name].dtype != dtype:
                raise CoCoMixError(f"the table {name} of {self.kind} is missing or no {dtype}; label the data again.")
        labeller = copy(self)
        labeller._tables = dict(tables)
        return labeller

    def table_hash(self) -> str:
        """Hash of what was learned."""
        self.require_tables()
        return fingerprint_json({name: tensor_sha256(tensor) for name, tensor in self._tables.items()})

    def require_tables(self) -> None:
        """Refuse to label before `fit`.

        Raises:
            CoCoMixError: nothing was learned.
        """
        if not self._tables:
            raise CoCoMixError(f"this {self.kind} labeller has learned nothing yet; call fit first.")
