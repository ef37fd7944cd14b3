"""From prepared data to a dictionary (`cocomix sae`): where the rooms `data` and `concepts` meet."""

import logging
from pathlib import Path
from typing import Any

from cocomix.artifacts import explained_full_disk
from cocomix.concepts import Dictionary, FitSettings, TeacherConfig, fit_identity
from cocomix.data import TRAIN, VALIDATION, Tokens

logger = logging.getLogger(__name__)


def fitted(
    data_path: Path, teacher: TeacherConfig, output: Path, settings: FitSettings | None = None
) -> Dictionary | None:
    """The dictionary that `fit_on_data` with these arguments has made; `None` where there is none yet.

    Raises:
        AlreadyExists: there is another, or something else.
    """
    made = Dictionary.made(output, _identity(Tokens.open(data_path), teacher, settings or FitSettings()))
    if made is not None:
        logger.info("%s is there already and was made with the same settings: nothing to do", output)
    return made


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
    if (made := fitted(data_path, teacher, output, settings)) is not None:
        return made
    from cocomix.concepts import SAMPLE_TOKENS, first_blocks, fit_dictionary, load_teacher
    from cocomix.labelling.opening import check_tokenizer, tokenizer_of
    from cocomix.runtime.device import default_device

    data = Tokens.open(data_path)
    model = load_teacher(teacher.model, revision=teacher.revision, device=default_device())
    check_tokenizer(model, tokenizer_of(teacher), data)
    with explained_full_disk(output):
        return fit_dictionary(
            model,
            teacher.layer,
            data.split(TRAIN),
            first_blocks(data.split(VALIDATION), SAMPLE_TOKENS),
            output,
            settings or FitSettings(),
            teacher_name=teacher.model,
            **_origin(data, teacher),
        )


def _identity(data: Tokens, teacher: TeacherConfig, settings: FitSettings) -> dict[str, Any]:
    return fit_identity(teacher.model, teacher.layer, settings, **_origin(data, teacher))


def _origin(data: Tokens, teacher: TeacherConfig) -> dict[str, Any]:
    bos = data.manifest.bos_token_id
    return {"tokens": data.manifest.fingerprint, "revision": teacher.revision, "bos_token_id": bos}
