"""Does a dictionary describe the layer it is used on?

Two measures on a batch of text, as the field reports them:

- **FVU**, the fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean(x)‖² over positions. 0 is perfect, 1 is no
  better than the mean. It is taken where the dictionary works: after the layer norm for `normalize="layer_norm"`. Raw
  hidden states of many models have a few positions with norms a hundred times the others', which would decide the
  figure alone.
- **Cross-entropy recovered**: (CE_zero − CE_dictionary) / (CE_zero − CE_clean), the next-token loss with the hidden
  state replaced by its reconstruction, on a scale from 0 (replaced by zeros) to 1 (left alone). Zero rather than mean
  ablation, because SAELens and most published figures use it; it is the more generous of the two.

A begin-of-text token is left out of the first and left alone in the second, as in SAELens.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from cocomix.concepts.decoder import target_mask
from cocomix.concepts.dictionary_folder import DictionaryFit
from cocomix.concepts.teacher import ConceptTeacher
from cocomix.runtime.errors import CoCoMixError

__all__ = ["MAXIMAL_FVU", "MINIMAL_CE_RECOVERED", "measure_fit", "require_fit"]

logger = logging.getLogger(__name__)

# Our choice. A dictionary on its own layer reaches an FVU of 0.05 to 0.3 and recovers 0.9 or more; on another model or
# a far layer it explains less than nothing. The limits lie well between the two.
MAXIMAL_FVU = 0.5
MINIMAL_CE_RECOVERED = 0.5


@torch.no_grad()
def measure_fit(
    teacher: ConceptTeacher, input_ids: Tensor, attention_mask: Tensor | None = None, *, batch_size: int = 8
) -> DictionaryFit:
    """Measure a teacher's dictionary on its layer.

    Args:
        teacher: model, dictionary and layer.
        input_ids: int64 [blocks, seq]; a few thousand tokens give two digits.
        attention_mask: [blocks, seq], 1 = token, 0 = padding, which does not count.
        batch_size: blocks per forward pass; three passes per batch.
    """
    dictionary, decoder = teacher.dictionary, teacher.decoder
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    total = torch.zeros(dictionary.d_model, dtype=torch.float64)
    squared = error = 0.0
    clean = replaced = zeroed = 0.0
    positions = targets = 0

    for ids, present in zip(torch.split(input_ids, batch_size), torch.split(mask, batch_size), strict=True):
        ids, present = ids.to(decoder.device), present.to(decoder.device)
        described = teacher.described(ids, present)
        hidden = decoder.hidden_states(ids, present)
        inputs, _ = dictionary.standardize(hidden[described])  # [positions, d_model]
        outputs = dictionary.decode(dictionary.encode(hidden[described]), None)
        total += inputs.sum(dim=0).double().cpu()
        squared += float(inputs.double().pow(2).sum())
        error += float((inputs - outputs).double().pow(2).sum())
        positions += len(inputs)
        targets += int(target_mask(ids, present).sum())
        clean += float(decoder.loss(ids, present))
        reconstructed = _replacing(described, dictionary.reconstruct)
        replaced += float(decoder.loss(ids, present, replace=reconstructed))
        zeroed += float(decoder.loss(ids, present, replace=_replacing(described, torch.zeros_like)))

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


def require_fit(
    fit: DictionaryFit,
    teacher: ConceptTeacher,
    *,
    force: bool = False,
    remedy: str = "check the layer and the SAE",
) -> None:
    """Refuse a dictionary that does not describe the teacher's layer.

    Args:
        fit: what `measure_fit` found.
        teacher: for the message.
        force: warn instead of refusing.
        remedy: what to do about it, for the message.

    Raises:
        CoCoMixError: FVU above `MAXIMAL_FVU` or cross-entropy recovered below `MINIMAL_CE_RECOVERED` (or not a number),
            unless `force`.
    """
    recovered = fit.ce_recovered
    if fit.fvu <= MAXIMAL_FVU and (recovered is None or recovered >= MINIMAL_CE_RECOVERED):
        return
    problem = (
        f"the dictionary {teacher.dictionary.name} does not describe the output of block {teacher.layer} of the "
        f"teacher {teacher.name}: {fit.describe()} (asked: at most {MAXIMAL_FVU} and at least {MINIMAL_CE_RECOVERED})"
    )
    if not force:
        raise CoCoMixError(f"{problem}; {remedy}, or use --force.")
    logger.warning("%s; used all the same.", problem)
