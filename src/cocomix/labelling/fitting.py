"""From prepared data to a dictionary (`cocomix sae`): where the rooms `data` and `concepts` meet."""

import logging
from pathlib import Path
from typing import Any

from cocomix.artifacts import explained_full_disk
from cocomix.concepts import (
    SAMPLE_TOKENS,
    Dictionary,
    FitSettings,
    TeacherConfig,
    first_blocks,
    fit_dictionary,
    fit_identity,
    load_teacher,
)
from cocomix.data import TRAIN, VALIDATION, Tokens
from cocomix.labelling.opening import check_tokenizer, tokenizer_of
from cocomix.runtime.device import default_device

__all__ = ["fit_on_data"]

logger = logging.getLogger(__name__)


def fit_on_data(
    data_path: Path, teacher: TeacherConfig, output: Path, settings: FitSettings | None = None
) -> Dictionary:
    """Fit a TopK autoencoder to a teacher's layer on prepared data, or find that it is there already.

    Args:
        data_path: folder written by `cocomix prepare` with the teacher's tokenizer.
        teacher: the language model and the block whose output is described.
        output: folder to write; SAELens reads it too.
        settings: sizes and schedule.

    Raises:
        CoCoMixError: the teacher reads another tokenizer; or as `fit_dictionary`.
    """
    settings = settings or FitSettings()
    data = Tokens.open(data_path)
    origin: dict[str, Any] = {
        "tokens": data.manifest.fingerprint,
        "revision": teacher.revision,
        "bos_token_id": data.manifest.bos_token_id,
    }
    if (made := Dictionary.made(output, fit_identity(teacher.model, teacher.layer, settings, **origin))) is not None:
        logger.info("%s is there already and was made with the same settings: nothing to do", output)
        return made
    model = load_teacher(teacher.model, revision=teacher.revision, device=default_device())
    check_tokenizer(model, tokenizer_of(teacher), data)
    with explained_full_disk(output):
        return fit_dictionary(
            model,
            teacher.layer,
            data.split(TRAIN),
            first_blocks(data.split(VALIDATION), SAMPLE_TOKENS),
            output,
            settings,
            teacher_name=teacher.model,
            **origin,
        )
