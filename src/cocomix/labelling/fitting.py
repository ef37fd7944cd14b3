"""From prepared data to a dictionary (`cocomix sae`): where the rooms `data` and `concepts` meet."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocomix.artifacts import AlreadyExists, explained_full_disk
from cocomix.concepts import Dictionary, FitSettings, TeacherConfig, fit_identity, has_other_weights
from cocomix.data import TRAIN, VALIDATION, Tokens, tokenizer_fingerprint
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cocomix.concepts import LoadedTeachers
    from cocomix.concepts.fit import TokenBlocksLike

logger = logging.getLogger(__name__)


def fitted(
    data_path: Path, teacher: TeacherConfig, output: Path, settings: FitSettings | None = None
) -> Dictionary | None:
    """The dictionary that `fit_on_data` with these arguments has made; `None` where nothing is there yet."""
    origin, settings = _origin(Tokens.open(data_path), teacher), (settings or FitSettings()).resolved()
    made = Dictionary.made(output, fit_identity(teacher.model, teacher.layer, settings, **origin))
    if made is None:
        return None

    def load() -> "PreTrainedModel":
        from cocomix.concepts import load_teacher
        from cocomix.labelling import block_functions  # noqa: F401 - registers students, which may be teachers

        return load_teacher(teacher.model, revision=teacher.revision)

    if has_other_weights(teacher.model, made.manifest.teacher_files, made.manifest.made_from["teacher"], load):
        raise AlreadyExists(
            f"{made.path} was fitted to other weights than {teacher.model} has now; remove it or choose another "
            "--output.",
            ("teacher",),
        )
    logger.info("%s is there already and was made with the same settings: nothing to do", output)
    return made


def fit_on_data(
    data_path: Path,
    teacher: TeacherConfig,
    output: Path,
    settings: FitSettings | None = None,
    *,
    teachers: "LoadedTeachers | None" = None,
) -> Dictionary:
    """Fit a TopK autoencoder to a teacher's layer on prepared data, or find that it is there already.

    The text of data of another tokenizer is read in the teacher's. SAELens reads the output, too.

    Raises:
        CoCoMixError: the tokenizers differ and the data's cannot be inverted to bytes, or its blocks begin with a token
            that is no text; or as `fit_dictionary`.
    """
    if (made := fitted(data_path, teacher, output, settings)) is not None:
        return made
    from cocomix.concepts import SAMPLE_TOKENS, LoadedTeachers, first_blocks, fit_dictionary, spread_blocks
    from cocomix.labelling.block_functions import aligned_texts, check_tokenizer
    from cocomix.runtime.device import default_device

    data, settings = Tokens.open(data_path), settings or FitSettings()
    teachers = teachers or LoadedTeachers()
    model, own = teachers.model(teacher, default_device()), teachers.tokenizer(teacher)
    blocks: TokenBlocksLike = data.split(TRAIN)
    heldout = first_blocks(data.split(VALIDATION), SAMPLE_TOKENS)
    if own is None or tokenizer_fingerprint(own) == data.manifest.tokenizer_fingerprint:
        check_tokenizer(model, own, data)
    elif data.manifest.bos_token_id is not None:
        raise CoCoMixError(
            f"the blocks of {data_path} begin with a token that {teacher.model}, which has another tokenizer, does not "
            "know; prepare the data without --prepend-bos."
        )
    else:
        texts = aligned_texts(data, model, own)
        blocks = [{"input_ids": row} for row in texts.blocks(spread_blocks(blocks, settings.tokens))]
        heldout = texts.blocks(heldout)
    with explained_full_disk(output):
        of = {"teacher_name": teacher.model, **_origin(data, teacher)}
        return fit_dictionary(model, teacher.layer, blocks, heldout, output, settings, **of)


def _origin(data: Tokens, teacher: TeacherConfig) -> dict[str, Any]:
    bos = data.manifest.bos_token_id
    return {"tokens": data.manifest.fingerprint, "revision": teacher.revision, "bos_token_id": bos}
