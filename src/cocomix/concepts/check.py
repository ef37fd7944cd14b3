"""Trying a labeller on a sample of the text that it is to label: does its dictionary fit, does its number format?

Three measures:

- **FVU**, the fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean(x)‖² over positions. 0 is perfect, 1 is no
  better than the mean. It is taken where the dictionary works: after the layer norm for `normalize="layer_norm"`. Raw
  hidden states of many models have a few positions with norms a hundred times the others', which would decide the
  figure alone. A begin-of-text token is left out, as in SAELens.
- **Cross-entropy recovered**: (CE_zero − CE_dictionary) / (CE_zero − CE_clean), the next-token loss with the hidden
  state replaced by its reconstruction, on a scale from 0 (replaced by zeros) to 1 (left alone). Zero rather than mean
  ablation, because SAELens and most published figures use it; it is the more generous of the two. A begin-of-text token
  is left alone.
- **Agreement** of a narrow format with the float32 teacher, which defines the labels, in two figures: the share of
  positions whose sets of labels are equal, and the share of the score that is kept, Σ scores of the chosen concepts /
  Σ scores of the best, both by float32. Rounding moves concepts of nearly equal score past one another, which changes
  sets and costs no score; so the score decides. SmolLM2-135M in bfloat16: 90% equal sets, 99.9% of the score.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cocomix.concepts.dictionary_folder import DictionaryFit
from cocomix.concepts.labeller import ConceptLabeller
from cocomix.concepts.labellers.teacher_labeller import TeacherLabeller
from cocomix.concepts.teacher import ConceptTeacher, refuse
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE

logger = logging.getLogger(__name__)

SAMPLE_TOKENS = 8192
"""Tokens that a sample should hold: enough for two digits of both measures of fit."""
_AGREEMENT_TOKENS = 4096

# Our choice. A dictionary on its own layer reaches an FVU of 0.05 to 0.3 and recovers 0.9 or more; on another model or
# a far layer it explains less than nothing. The limits lie well between the two.
_MAXIMAL_FVU = 0.5
_MINIMAL_CE_RECOVERED = 0.5
_MINIMAL_SCORE_KEPT = 0.99
_CHECK = "check the layer and the SAE"
_CANDIDATES = 4  # a narrow format's labels are looked for among so many times k of float32's; beyond, they score 0


class Agreement(NamedTuple):
    """How far labels made in a narrow format are those of float32, over the positions that have any."""

    equal_sets: float
    """Share of positions with equal sets of labels."""
    score_kept: float
    """Share of the best labels' score that the chosen ones have, both by float32."""


def check_labeller(
    labeller: ConceptLabeller, sample: Tensor, *, k: int, tokenizer_has_bos: bool = False, force: bool = False
) -> Agreement | None:
    """Try the dictionary and the number format of a labeller with a teacher; others are taken as they are.

    The sample is held-out text, about `SAMPLE_TOKENS` tokens of it, int64 [blocks, seq]. `tokenizer_has_bos` says
    whether blocks could begin with a begin-of-text token. Errors are those of `require_fit` and `require_agreement`.

    Returns:
        The agreement; None where the teacher runs in float32, or there is none.
    """
    if not isinstance(labeller, TeacherLabeller):
        return None
    teacher = labeller.teacher
    fit = measure_fit(teacher, sample)
    logger.info("the dictionary on block %d: %s", teacher.layer, fit.describe())
    require_fit(fit, teacher, force=force, remedy=_remedy(teacher, tokenizer_has_bos))
    if labeller.dtype == "float32":
        return None
    part = sample[: max(1, _AGREEMENT_TOKENS // sample.shape[1])]
    agreement = measure_agreement(labeller, labeller.with_dtype("float32"), part, k)
    logger.info(
        f"{labeller.dtype} gives {agreement.equal_sets:.1%} of {part.numel():,} positions the labels of float32 and "
        f"keeps {agreement.score_kept:.2%} of their score"
    )
    require_agreement(agreement, labeller.dtype, force=force)
    return agreement


def _remedy(teacher: ConceptTeacher, tokenizer_has_bos: bool) -> str:
    """What to do about a bad fit; says whether the dictionary was fitted on contexts that begin otherwise."""
    fitted_after, begins = teacher.dictionary.prepend_bos, teacher.bos_token_id is not None
    if fitted_after is None or fitted_after == begins or (fitted_after and not tokenizer_has_bos):
        return _CHECK
    problem = "was fitted on contexts without the begin-of-text token, with which these blocks begin"
    if fitted_after:
        problem = "was fitted on contexts that begin with the begin-of-text token, which these blocks do not"
    logger.info("the dictionary %s", problem)
    return f"it {problem}, so prepare the data {'with' if fitted_after else 'without'} --prepend-bos"


@torch.no_grad()
def measure_fit(teacher: ConceptTeacher, input_ids: Tensor, *, batch_size: int = 8) -> DictionaryFit:
    """Measure a teacher's dictionary on its layer, by tokens [blocks, seq]; a few thousand give two digits."""
    dictionary, decoder = teacher.dictionary, teacher.decoder
    total = torch.zeros(dictionary.d_model, dtype=torch.float64)
    squared = error = 0.0
    clean = replaced = zeroed = 0.0
    positions = targets = 0
    for ids in torch.split(input_ids.to(decoder.device), batch_size):
        described = teacher.described(ids, None)
        hidden = decoder.hidden_states(ids)
        inputs, _ = dictionary.standardize(hidden[described])  # [positions, d_model]
        outputs = dictionary.decode(dictionary.encode(hidden[described]), None)
        total += inputs.sum(dim=0).double().cpu()
        squared += float(inputs.double().pow(2).sum())
        error += float((inputs - outputs).double().pow(2).sum())
        positions += len(inputs)
        targets += ids[:, 1:].numel()
        clean += float(decoder.loss(ids))
        replaced += float(decoder.loss(ids, replace=_replacing(described, dictionary.reconstruct)))
        zeroed += float(decoder.loss(ids, replace=_replacing(described, torch.zeros_like)))
    if positions < 2 or targets == 0:
        raise CoCoMixError("the fit of a dictionary needs at least two tokens of text; give it a few thousand.")
    variance = squared - float(total.pow(2).sum()) / positions
    return DictionaryFit(
        fvu=error / variance,
        ce_clean=clean / targets,
        ce_dictionary=replaced / targets,
        ce_zero=zeroed / targets,
        positions=positions,
    )


def _replacing(where: Tensor, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Apply a function to hidden states [batch, seq, d_model] where `where` [batch, seq] is true."""
    return lambda hidden: torch.where(where[..., None], function(hidden).to(hidden.dtype), hidden)


def require_fit(fit: DictionaryFit, teacher: ConceptTeacher, *, force: bool = False, remedy: str = _CHECK) -> None:
    """Refuse a dictionary that does not describe the teacher's layer; only warn of it with `force`.

    Raises:
        CoCoMixError: the FVU is above 0.5, or less than 0.5 of the cross-entropy is recovered, or one is not a number.
    """
    recovered = fit.ce_recovered
    if fit.fvu <= _MAXIMAL_FVU and (recovered is None or recovered >= _MINIMAL_CE_RECOVERED):
        return
    problem = (
        f"the dictionary {teacher.dictionary.name} does not describe the output of block {teacher.layer} of the "
        f"teacher {teacher.name}: {fit.describe()} (asked: at most {_MAXIMAL_FVU} and at least {_MINIMAL_CE_RECOVERED})"
    )
    refuse(problem, f"{remedy}, or use --force", force)


def label_agreement(first: Tensor, second: Tensor) -> float:
    """Share of positions whose label sets are equal, of those labelled in either; 1 if none is. [batch, seq, k] each"""
    labelled = ((first != IGNORE) | (second != IGNORE)).any(dim=-1)
    equal = (first.sort(dim=-1).values == second.sort(dim=-1).values).all(dim=-1)
    return float(equal[labelled].float().mean()) if bool(labelled.any()) else 1.0


def measure_agreement(
    narrow: ConceptLabeller, exact: ConceptLabeller, input_ids: Tensor, k: int, *, batch_size: int = 8
) -> Agreement:
    """Compare the labels of two labellers on tokens, int64 [blocks, seq]."""
    chosen, best, kept, whole = [], [], 0.0, 0.0
    for rows in torch.split(input_ids, batch_size):
        ids, first = narrow.label(rows, k=k).ids, exact.label(rows, k=k).ids
        exactly = exact.label(rows, k=_CANDIDATES * k)  # their first k are `first`, but for labels drawn at random
        scores = (torch.ones_like(exactly.ids, dtype=torch.float32) if exactly.scores is None else exactly.scores).abs()
        scores = scores.masked_fill(exactly.ids == IGNORE, 0.0)
        kept += float(scores[(exactly.ids[..., None] == ids[..., None, :]).any(-1)].sum())
        whole += float(scores[(exactly.ids[..., None] == first[..., None, :]).any(-1)].sum())
        chosen.append(ids)
        best.append(first)
    return Agreement(label_agreement(torch.cat(chosen), torch.cat(best)), min(1.0, kept / whole) if whole else 1.0)


def require_agreement(agreement: Agreement, dtype: str, *, force: bool = False) -> None:
    """Refuse a number format that chooses other concepts; only warn of it with `force`.

    Raises:
        CoCoMixError: less than 99% of the labels' score is kept.
    """
    if agreement.score_kept >= _MINIMAL_SCORE_KEPT:
        return
    problem = (
        f"in {dtype} the teacher's labels keep {agreement.score_kept:.1%} of the score of those in float32 (asked: at "
        f"least {_MINIMAL_SCORE_KEPT:.0%}) and are the same at {agreement.equal_sets:.1%} of the positions"
    )
    refuse(problem, "label with dtype float32, or use --force", force)
