"""Are the labels of a teacher run in a narrow number format those of the float32 teacher?

Labels are defined by the float32 teacher. Rounding moves concepts of nearly equal score past one another, and in and
out of the dictionary's TopK, so that the format's worth is measured, not assumed.
"""

import torch
from torch import Tensor

from cocomix.concepts.attribution import AttributionSettings, label_agreement
from cocomix.concepts.teacher import ConceptTeacher
from cocomix.runtime.console import Reporter, SilentReporter
from cocomix.runtime.errors import CoCoMixError

__all__ = ["MINIMAL_AGREEMENT", "measure_agreement", "require_agreement"]

MINIMAL_AGREEMENT = 0.99  # our choice


def measure_agreement(
    teacher: ConceptTeacher, input_ids: Tensor, k: int, settings: AttributionSettings, *, batch_size: int = 8
) -> float:
    """Share of labelled positions whose label sets in `settings.dtype` equal those in float32.

    Args:
        teacher: model, dictionary and layer.
        input_ids: int64 [blocks, seq]; a few thousand tokens give two digits.
        k: labels per position.
        settings: how labels are chosen, with the dtype in question.
        batch_size: blocks per forward pass.
    """
    exact = settings.model_copy(update={"dtype": "float32"})
    sets = [
        [teacher.label(rows, k=k, settings=each).ids for rows in torch.split(input_ids, batch_size)]
        for each in (settings, exact)
    ]
    return label_agreement(torch.cat(sets[0]), torch.cat(sets[1]))


def require_agreement(agreement: float, dtype: str, *, force: bool = False, reporter: Reporter | None = None) -> None:
    """Refuse a number format that changes too many labels.

    Args:
        agreement: what `measure_agreement` found.
        dtype: for the message.
        force: warn instead of refusing.
        reporter: where the warning goes.

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
    (reporter or SilentReporter()).warn(f"{problem}; used all the same.")
