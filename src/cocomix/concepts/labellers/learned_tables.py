"""Labellers that learn tables from a first pass over a sample of the corpus, such as means per token and concept."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from cocomix.artifacts import fingerprint_json, tensor_sha256
from cocomix.concepts.dictionary import SparseCodes
from cocomix.concepts.labellers.teacher_labeller import TeacherLabeller
from cocomix.concepts.teacher import ConceptTeacher
from cocomix.runtime.errors import CoCoMixError

_PENDING = 2**23  # scores summed at once: 128 MiB


class TableLabeller(ABC):
    """A labeller with tables, learned from `sample_tokens` tokens of the training split. `fit` it before it labels."""

    kind: ClassVar[str]
    algorithm: ClassVar[str] = "1"  # raised whenever the same settings and tables would give other labels than before

    def __init__(self, *, sample_tokens: int) -> None:
        self.sample_tokens = sample_tokens
        self._tables: dict[str, Tensor] = {}

    @abstractmethod
    def layouts(self) -> dict[str, tuple[torch.dtype, tuple[int, ...] | None]]:
        """Type and shape of every table; None where any shape will do."""

    def tables(self) -> dict[str, Tensor]:
        """What was learned; empty before `fit`."""
        return dict(self._tables)

    def with_tables(self, tables: Mapping[str, Tensor]) -> Self:
        """A labeller with the tables of an earlier `fit`."""
        for name, (dtype, shape) in self.layouts().items():
            found = tables.get(name)
            if found is None or found.dtype != dtype or (shape is not None and tuple(found.shape) != shape):
                there = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
                wanted = f"{dtype} {list(shape or ())}"
                raise CoCoMixError(f"the table {name} of {self.kind} is {there}, not {wanted}; label the data again.")
        labeller = copy(self)
        labeller._tables = dict(tables)
        return labeller

    def table_hash(self) -> str:
        """Hash of what was learned."""
        self.require_tables()
        return fingerprint_json({name: tensor_sha256(tensor) for name, tensor in self._tables.items()})

    def require_tables(self) -> None:
        """Refuse to label before `fit`."""
        if not self._tables:
            raise CoCoMixError(f"this {self.kind} labeller has learned nothing yet; call fit first.")


class TokenSums(NamedTuple):
    """Sums of scores over all positions of a sample that hold the same token; a concept without a score counts as 0."""

    keys: Tensor  # token · n_concepts + concept of every pair that occurs, rising. int64 [pairs]
    sums: Tensor  # of its scores. float64 [pairs]
    counts: Tensor  # positions that hold the token. int64 [vocab]


class FittedTeacherLabeller(TableLabeller, TeacherLabeller):
    """A labeller with a teacher, a dictionary and tables."""

    def __init__(self, teacher: ConceptTeacher, **settings: Any) -> None:
        TeacherLabeller.__init__(self, teacher, **settings)
        TableLabeller.__init__(self, sample_tokens=self.settings["sample_tokens"])

    def scored(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[SparseCodes, Tensor]:
        """Concepts and scores [batch, seq, width] whose means are learned, and which positions get labels."""
        return self.teacher.active_concepts(input_ids, attention_mask, dtype=self.dtype)

    @abstractmethod
    def learned(self, sums: TokenSums) -> dict[str, Tensor]:
        """The tables."""

    def fit(self, batches: Iterable[Tensor]) -> Self:
        """Learn the tables from batches of token ids, int64 [batch, seq] each."""
        n_concepts, vocab_size = self.num_concepts, self.teacher.vocab_size
        counts = torch.zeros(vocab_size, dtype=torch.int64)
        keys, sums = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        pending: list[tuple[Tensor, Tensor]] = []
        for batch in batches:
            codes, _ = self.scored(batch)
            described = self.teacher.described(batch, None).cpu()
            tokens = batch.cpu()[described]  # [positions]
            ids, values = (part.detach().cpu()[described] for part in codes)  # [positions, width]
            used = values != 0
            counts += torch.bincount(tokens, minlength=vocab_size)
            pending.append(((tokens[:, None] * n_concepts + ids)[used], values[used].double()))
            if sum(len(part) for part, _ in pending) > _PENDING:
                keys, sums, pending = *_summed([(keys, sums), *pending]), []
        if not counts.any():
            raise CoCoMixError(f"labels of kind {self.kind} need tokens to learn from, and there were none.")
        keys, sums = _summed([(keys, sums), *pending])
        return self.with_tables(self.learned(TokenSums(keys, sums, counts)))

    def fit_flops_per_token(self, seq: int) -> float:
        """Floating-point operations of `fit` per token of the sample, in blocks of `seq` tokens."""
        return TeacherLabeller.flops_per_token(self, seq)

    def fingerprint(self) -> dict[str, str]:
        return {**super().fingerprint(), "table": self.table_hash()}


def _summed(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Keys and values with equal keys added up: sorted keys and their sums."""
    keys, places = torch.unique(torch.cat([part for part, _ in parts]), return_inverse=True)
    sums = torch.zeros(len(keys), dtype=torch.float64)
    return keys, sums.index_add_(0, places, torch.cat([values for _, values in parts]))
