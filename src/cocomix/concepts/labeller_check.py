"""Trying a labeller on a sample of the text that it is to label: its dictionary's fit, and its number format.

Labels are defined by the float32 teacher. Rounding moves concepts of nearly equal score past one another, and in and
out of the dictionary's TopK, so the share of positions whose labels stay the same is measured.
"""

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from cocomix.concepts.check import measure_fit, require_fit
from cocomix.concepts.dictionary_folder import DictionaryFit
from cocomix.concepts.labeller import IGNORE, ConceptLabeller
from cocomix.concepts.labellers import TeacherLabeller
from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "MINIMAL_AGREEMENT",
    "SAMPLE_TOKENS",
    "LabellerCheck",
    "check_labeller",
    "label_agreement",
    "measure_agreement",
    "require_agreement",
]

logger = logging.getLogger(__name__)

SAMPLE_TOKENS = 8192
"""Tokens that a sample should hold: enough for two digits of both measures of fit."""
_AGREEMENT_TOKENS = 4096
MINIMAL_AGREEMENT = 0.99  # our choice


class LabellerCheck(NamedTuple):
    """What was measured of a labeller with a teacher.

    Attributes:
        fit: how well the dictionary describes the layer; None without a teacher.
        agreement: share of positions with the labels of the float32 teacher; None where it runs in float32.
    """

    fit: DictionaryFit | None = None
    agreement: float | None = None


def check_labeller(
    labeller: ConceptLabeller, sample: Tensor, *, k: int, tokenizer_has_bos: bool = False, force: bool = False
) -> LabellerCheck:
    """Try the dictionary and the number format of a labeller with a teacher; others are taken as they are.

    Args:
        labeller: to be tried.
        sample: token ids of held-out text, about `SAMPLE_TOKENS` of them. int64 [blocks, seq]
        k: labels per position.
        tokenizer_has_bos: whether there is a begin-of-text token that blocks could begin with.
        force: warn where it would refuse.

    Raises:
        CoCoMixError: the dictionary does not describe the layer (`require_fit`), or the number format changes too many
            labels (`require_agreement`), unless `force`.
    """
    if not isinstance(labeller, TeacherLabeller):
        return LabellerCheck()
    teacher = labeller.teacher
    fit = measure_fit(teacher, sample)
    logger.info("the dictionary on block %d: %s", teacher.layer, fit.describe())
    other = _other_beginning(teacher.dictionary.prepend_bos, teacher.bos_token_id is not None, tokenizer_has_bos)
    if other is None:
        require_fit(fit, teacher, force=force)
    else:
        problem, remedy = other
        logger.info("the dictionary %s", problem)
        require_fit(fit, teacher, force=force, remedy=f"it {problem}, so {remedy}")
    if labeller.dtype == "float32":
        return LabellerCheck(fit)
    part = sample[: max(1, _AGREEMENT_TOKENS // sample.shape[1])]
    agreement = measure_agreement(labeller, labeller.with_dtype("float32"), part, k)
    logger.info(
        "%s gives %.2f%% of %s positions the labels of float32", labeller.dtype, 100 * agreement, f"{part.numel():,}"
    )
    require_agreement(agreement, labeller.dtype, force=force)
    return LabellerCheck(fit, agreement)


def _other_beginning(said: bool | None, has: bool, possible: bool) -> tuple[str, str] | None:
    """How the contexts that a dictionary is said to be fitted on begin otherwise than the blocks, and what to do."""
    if said is None or said == has or (said and not possible):
        return None
    if said:
        problem = "was fitted on contexts that begin with the begin-of-text token, which these blocks do not"
        return problem, "prepare the data with --prepend-bos"
    problem = "was fitted on contexts without the begin-of-text token, with which these blocks begin"
    return problem, "prepare the data without --prepend-bos"


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
