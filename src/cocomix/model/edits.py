"""Edits of concept logits: how a user turns a concept up or down (paper section 5.3, steering).

An edit says what happens to one concept, from which token on, and in which rows of a batch. Before a forward pass the
edits are placed on its positions (`place_edits`); where none applies, nothing is computed anew.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from cocomix.runtime.errors import CoCoMixError

Operation = Literal["scale", "add", "set", "ban"]
ConceptIntervention = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(ids, values), each [batch, seq, k] → what is mixed in instead; measures how much a model relies on concepts."""

_LARGEST = 1e30  # a product with a concept logit stays finite in float32 and bfloat16


@dataclass(frozen=True)
class ConceptEdit:
    """One change to one concept's logit z, made before the top-k selection.

    Attributes:
        concept: index of the concept, 0 … C − 1.
        operation: `"scale"` (z ← value·z, the paper's), `"add"` (z ← z + value), `"set"` (z ← value) or `"ban"`
            (z ← −∞, so that the concept is never mixed in; needs another concept to take its place).
        value: the number of the operation; ignored by `"ban"`.
        start: first token it applies to, counted from 0 in the tokens of each row, padding left out.
        rows: rows of the batch it applies to; `None` = all. In `generate`, rows are those of the prompts: beams and
            repeated samples follow their prompt.
    """

    concept: int
    operation: Operation = "scale"
    value: float = 1.0
    start: int = 0
    rows: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.operation not in get_args(Operation):
            raise CoCoMixError(f"edit {self.operation!r} is not one of {', '.join(get_args(Operation))}.")
        if not abs(self.value) <= _LARGEST:  # also refuses NaN
            raise CoCoMixError(
                f"the value {self.value} of the edit of concept {self.concept} must be a number from "
                f"-{_LARGEST:g} to {_LARGEST:g}."
            )
        if self.start < 0:
            raise CoCoMixError(
                f"the edit of concept {self.concept} starts at token {self.start}; tokens are counted from 0."
            )
        if self.rows is not None and (not self.rows or min(self.rows) < 0):
            raise CoCoMixError(
                f"the edit of concept {self.concept} has rows={self.rows}; name rows from 0, or leave it out for all."
            )

    @property
    def neutral(self) -> bool:
        """Whether it changes nothing: a factor of 1, or 0 added."""
        return (self.operation, self.value) in (("scale", 1.0), ("add", 0.0))

    def edited(self, values: Tensor, banned: float) -> Tensor:
        """The edited values, of any shape; a banned concept's become `banned`."""
        if self.operation == "scale":
            return values * self.value
        if self.operation == "add":
            return values + self.value
        return torch.full_like(values, self.value if self.operation == "set" else banned)


class PlacedEdit(NamedTuple):
    """An edit and where it applies, which is somewhere: bool [batch, seq]."""

    edit: ConceptEdit
    where: Tensor


def check_edits(edits: Sequence[ConceptEdit], num_concepts: int) -> None:
    """Refuse, with a `CoCoMixError`, edits of concepts outside 0 … num_concepts − 1."""
    for edit in edits:
        if not 0 <= edit.concept < num_concepts:
            raise CoCoMixError(
                f"concept {edit.concept} does not exist: this model has concepts 0 to {num_concepts - 1}."
            )


def place_edits(
    edits: Sequence[ConceptEdit],
    positions: Tensor,  # [batch or 1, seq] int64
    rows: Tensor,  # [batch] int64
) -> list[PlacedEdit]:
    """Where edits apply in a forward pass, in the order in which they are made; without those that change nothing here.

    Bans come last: −∞ scaled by zero would be a NaN, which top-k ranks first. An edit of a row that the batch does not
    have is refused.

    Args:
        positions: of the tokens of this pass in their row, padding left out.
        rows: which row each row of the batch counts as.
    """
    placed = []
    for edit in sorted(edits, key=lambda edit: edit.operation == "ban"):
        where = (positions >= edit.start).expand(len(rows), -1)
        if edit.rows is not None:
            if max(edit.rows) > int(rows.max()):
                raise CoCoMixError(
                    f"the edit of concept {edit.concept} names row {max(edit.rows)}, but the batch has rows 0 to "
                    f"{int(rows.max())}."
                )
            where = where & torch.isin(rows, torch.tensor(edit.rows, device=rows.device)).unsqueeze(1)
        if not edit.neutral and bool(where.any()):
            placed.append(PlacedEdit(edit, where))
    return placed


def apply_edits(
    logits: Tensor,  # [positions, n_concepts]
    edits: Sequence[PlacedEdit],  # each `where` is [positions]
) -> Tensor:  # [positions, n_concepts]
    """Return edited concept logits; `logits` itself is left untouched."""
    edited = logits.clone()
    for edit, where in edits:
        column = edited[:, edit.concept]
        edited[:, edit.concept] = torch.where(where, edit.edited(column, banned=float("-inf")), column)
    return edited


_IN_FORCE: ContextVar[tuple[tuple[nn.Module, tuple[ConceptEdit, ...]], ...]] = ContextVar("edits in force", default=())


@contextmanager
def edits_in_force(model: nn.Module, edits: Sequence[ConceptEdit]) -> Iterator[None]:
    """Every forward pass of `model` within the block makes these edits, after those of the blocks around it.

    They hold in this thread (or task) alone: a thread started within the block does not see them. Nor does a compiled
    graph of the model; give that its edits as `concept_edits`.
    """
    token = _IN_FORCE.set((*_IN_FORCE.get(), (model, tuple(edits))))
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def active_edits(model: nn.Module) -> tuple[ConceptEdit, ...]:
    """The edits in force for a model, outermost block first."""
    if torch.compiler.is_compiling():
        return ()
    return tuple(edit for edited, edits in _IN_FORCE.get() if edited is model for edit in edits)
