"""Trying a labeller on a sample of the text that it is to label."""

import logging
from typing import NamedTuple

from torch import Tensor

from cocomix.concepts.agreement import measure_agreement, require_agreement
from cocomix.concepts.check import measure_fit, require_fit
from cocomix.concepts.dictionary_folder import DictionaryFit
from cocomix.concepts.labeller import ConceptLabeller
from cocomix.concepts.labellers import TeacherLabeller

__all__ = ["SAMPLE_TOKENS", "LabellerCheck", "check_labeller"]

logger = logging.getLogger(__name__)

SAMPLE_TOKENS = 8192
"""Tokens that a sample should hold: enough for two digits of both measures of fit."""
_AGREEMENT_TOKENS = 4096


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
