"""Are the labels of a teacher run in a narrow number format those of the float32 teacher?

Labels are defined by the float32 teacher. Rounding moves concepts of nearly equal score past one another, and in and
out of the dictionary's TopK, so the share of positions whose labels stay the same is measured.
"""

import logging

import torch
from torch import Tensor

from cocomix.concepts.labeller import IGNORE, ConceptLabeller
from cocomix.runtime.errors import CoCoMixError

__all__ = ["MINIMAL_AGREEMENT", "label_agreement", "measure_agreement", "require_agreement"]

logger = logging.getLogger(__name__)

MINIMAL_AGREEMENT = 0.99  # our choice


def label_agreement(first: Tensor, second: Tensor) -> float:
    """Share of positions whose label sets are equal, among positions labelled in at least one of the two.

    Args:
        first: label ids [batch, seq, k], `IGNORE` = no label.
        second: the same shape.

    Returns:
        A number in [0, 1]; 1.0 when no position is labelled.
    """
    labelled = ((first != IGNORE) | (second != IGNORE)).any(dim=-1)
    equal = (first.sort(dim=-1).values == second.sort(dim=-1).values).all(dim=-1)
    return float(equal[labelled].float().mean()) if bool(labelled.any()) else 1.0


def measure_agreement(
    narrow: ConceptLabeller, exact: ConceptLabeller, input_ids: Tensor, k: int, *, batch_size: int = 8
) -> float:
    """Share of labelled positions whose label sets are the same by two labellers.

    Args:
        narrow: a labeller whose teacher runs in a narrow format.
        exact: the same in float32.
        input_ids: int64 [blocks, seq]; a few thousand tokens give two digits.
        k: labels per position.
        batch_size: blocks per forward pass.
    """
    sets = [
        torch.cat([labeller.label(rows, k=k).ids for rows in torch.split(input_ids, batch_size)])
        for labeller in (narrow, exact)
    ]
    return label_agreement(*sets)


def require_agreement(agreement: float, dtype: str, *, force: bool = False) -> None:
    """Refuse a number format that changes too many labels.

    Args:
        agreement: what `measure_agreement` found.
        dtype: for the message.
        force: warn instead of refusing.

    Raises:
        CoCoMixError: fewer than `MINIMAL_AGREEMENT` of the sets are equal, unless `force`.
    """
    if agreement >= MINIMAL_AGREEMENT:
        return
    problem = (
        f"in {dtype} the teacher gives {agreement:.1%} of the positions the labels it gives them in float32 (asked: at "
        f"least {MINIMAL_AGREEMENT:.0%})"
    )
    if not force:
        raise CoCoMixError(f"{problem}; label with dtype float32, or use --force.")
    logger.warning("%s; used all the same.", problem)
