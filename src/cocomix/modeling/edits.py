"""Edits of the concept logits: how a user turns a concept up or down (paper section 5.3, steering)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from cocomix.errors import CoCoMixError

__all__ = ["ConceptEdit", "apply_edits", "check_edits"]

Operation = Literal["scale", "add", "set", "ban"]

_LARGEST = 1e30  # a product with a concept logit stays finite in float32 and bfloat16


@dataclass(frozen=True)
class ConceptEdit:
    """One change to one concept's logit z at every position, made before the top-k selection.

    Attributes:
        concept: index of the concept, 0 … C − 1.
        operation: `"scale"` (z ← value·z, the paper's), `"add"` (z ← z + value), `"set"` (z ← value) or `"ban"`
            (z ← −∞, so that the concept is never mixed in; needs another concept to take its place).
        value: the number of the operation; ignored by `"ban"`.
    """

    concept: int
    operation: Operation = "scale"
    value: float = 1.0

    def __post_init__(self) -> None:
        if self.operation not in get_args(Operation):
            raise CoCoMixError(f"edit {self.operation!r} is not one of {', '.join(get_args(Operation))}.")
        if not abs(self.value) <= _LARGEST:  # also refuses NaN
            raise CoCoMixError(
                f"the value {self.value} of the edit of concept {self.concept} must be a number from "
                f"-{_LARGEST:g} to {_LARGEST:g}."
            )


def check_edits(edits: Sequence[ConceptEdit], num_concepts: int) -> None:
    """Refuse edits of concepts that do not exist.

    Raises:
        CoCoMixError: an index is outside 0 … num_concepts − 1.
    """
    for edit in edits:
        if not 0 <= edit.concept < num_concepts:
            raise CoCoMixError(
                f"concept {edit.concept} does not exist: this model has concepts 0 to {num_concepts - 1}."
            )


def apply_edits(
    logits: Tensor,  # [batch, seq, n_concepts]
    edits: Sequence[ConceptEdit],
) -> Tensor:  # [batch, seq, n_concepts]
    """Return edited concept logits; `logits` itself is left untouched.

    Edits apply in order, bans after all others: −∞ scaled by zero would be a NaN, which top-k ranks first.
    """
    edited = logits.clone()
    for edit in sorted(edits, key=lambda edit: edit.operation == "ban"):
        column = edited[..., edit.concept]
        if edit.operation == "scale":
            column.mul_(edit.value)
        elif edit.operation == "add":
            column.add_(edit.value)
        elif edit.operation == "set":
            column.fill_(edit.value)
        else:
            column.fill_(float("-inf"))
    return edited
