"""From prepared data to a dictionary and labels: where the rooms `data` and `concepts` meet."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.artifacts.output import explained_full_disk, read_json
from cocomix.concepts import (
    ConceptTeacher,
    FitReport,
    FitSettings,
    TeacherSource,
    check_tokenizer,
    fit_dictionary,
    load_teacher,
    measure_agreement,
    measure_fit,
    require_agreement,
    require_fit,
)
from cocomix.concepts.decoder import FrozenDecoder
from cocomix.concepts.sources import DictionaryConfig, TeacherConfig
from cocomix.data import TRAIN, VALIDATION, PreparedData, TokenBlocks, load_tokenizer, tokenizer_fingerprint
from cocomix.labelling import LabelManifest, LabelSettings, RaySettings, ShardPart, write_labels, write_probabilities
from cocomix.labelling.probabilities import ProbabilityDtype, ProbabilityManifest
from cocomix.runtime.console import Reporter, SilentReporter
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "OpenedTeacher",
    "distill_data",
    "fit_on_data",
    "label_data",
    "layer_of_dictionary",
    "open_decoder",
    "open_teacher",
]

_CHECK_TOKENS = 8192
_AGREEMENT_TOKENS = 4096


def fit_on_data(
    data_path: Path,
    teacher: TeacherConfig,
    output: Path,
    settings: FitSettings | None = None,
    reporter: Reporter | None = None,
) -> FitReport:
    """Fit a TopK autoencoder to a teacher's layer on prepared data (`cocomix sae`).

    Args:
        data_path: folder written by `cocomix prepare` with the teacher's tokenizer.
        teacher: the language model and the block whose output is described.
        output: folder to write; SAELens reads it too.
        settings: sizes and schedule.
        reporter: told about progress.
    """
    data = PreparedData.open(data_path)
    model = load_teacher(teacher.model, revision=teacher.revision, device=default_device())
    _check_tokenizer(model, teacher, data)
    with explained_full_disk(output):
        return fit_dictionary(
            model,
            teacher.layer,
            data.split(TRAIN).shards,
            _first_blocks(data.split(VALIDATION), _CHECK_TOKENS),
            output,
            settings,
            teacher_name=teacher.model,
            data_fingerprint=data.meta.fingerprint,
            bos_token_id=data.meta.bos_token_id,
            reporter=reporter,
        )


def label_data(
    data_path: Path,
    teacher: TeacherConfig,
    dictionary: DictionaryConfig,
    output: Path,
    settings: LabelSettings | None = None,
    *,
    force: bool = False,
    batch_tokens: int = 4096,
    workers: int = 1,
    ray: RaySettings | None = None,
    part: ShardPart | None = None,
    reporter: Reporter | None = None,
) -> LabelManifest | None:
    """Label every token of prepared data with concepts (`cocomix label`), or those of one part of its shards.

    Args:
        data_path: folder written by `cocomix prepare` with the teacher's tokenizer.
        teacher: the language model and the block that the dictionary describes.
        dictionary: the sparse autoencoder.
        output: folder to write; an interrupted run goes on at the next shard.
        settings: how labels are chosen.
        force: go on with a dictionary or a dtype that `open_teacher` would refuse.
        batch_tokens: tokens per forward pass.
        workers: processes that label, each with a teacher of its own; see `write_labels`.
        ray: label on a Ray cluster instead.
        part: of the shards; other parts may be labelled at the same time.
        reporter: told about progress.

    Returns:
        The manifest; `None` while shards are left to other parts.
    """
    reporter = reporter or SilentReporter()
    settings = settings or LabelSettings()
    data = PreparedData.open(data_path)
    opened = open_teacher(data, teacher, dictionary, settings, force=force, reporter=reporter)
    return write_labels(
        opened.teacher,
        {name: data.split(name).shards for name in (TRAIN, VALIDATION)},
        output,
        settings,
        data_fingerprint=data.meta.fingerprint,
        tokenizer_fingerprint=data.meta.tokenizer_fingerprint,
        block_size=data.meta.block_size,
        batch_tokens=batch_tokens,
        workers=workers,
        source=_source(data, teacher, dictionary),
        ray=ray,
        part=part,
        agreement=opened.agreement,
        reporter=reporter,
    )


def distill_data(
    data_path: Path,
    teacher: TeacherConfig,
    output: Path,
    *,
    top_k: int,
    dtype: ProbabilityDtype = "float32",
    batch_tokens: int = 4096,
    reporter: Reporter | None = None,
) -> ProbabilityManifest:
    """Store a teacher's next-token distributions on a prepared data set (`cocomix distill`).

    Args:
        data_path: folder written by `cocomix prepare` with the teacher's tokenizer.
        teacher: the language model; its layer plays no part.
        output: folder to write.
        top_k: probabilities kept per position.
        dtype: what the teacher runs in.
        batch_tokens: tokens per forward pass.
        reporter: told about progress.

    Raises:
        CoCoMixError: as `open_decoder` and `write_probabilities`.
    """
    data = PreparedData.open(data_path)
    return write_probabilities(
        open_decoder(data, teacher),
        {name: data.split(name).shards for name in (TRAIN, VALIDATION)},
        output,
        teacher_name=teacher.model,
        top_k=top_k,
        vocab_size=data.meta.vocab_size,
        data_fingerprint=data.meta.fingerprint,
        tokenizer_fingerprint=data.meta.tokenizer_fingerprint,
        block_size=data.meta.block_size,
        dtype=dtype,
        batch_tokens=batch_tokens,
        reporter=reporter,
    )


class OpenedTeacher(NamedTuple):
    """A teacher that was tried on the data.

    Attributes:
        teacher: with its dictionary.
        agreement: share of positions with the float32 teacher's labels; `None` where the teacher runs in float32.
    """

    teacher: ConceptTeacher
    agreement: float | None


def open_teacher(
    data: PreparedData,
    teacher: TeacherConfig,
    dictionary: DictionaryConfig,
    settings: LabelSettings,
    *,
    device: torch.device | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> OpenedTeacher:
    """Load a teacher with its dictionary and try both on a few validation blocks.

    Args:
        data: prepared with the teacher's tokenizer.
        teacher: the language model and the block that the dictionary describes.
        dictionary: the sparse autoencoder.
        settings: how labels are chosen.
        device: where to put both; the best one by default.
        force: warn where it would refuse.
        reporter: told what was measured.

    Raises:
        CoCoMixError: nothing can be loaded; the teacher reads another tokenizer; the dictionary does not describe the
            layer (`require_fit`), or the dtype changes too many labels (`require_agreement`), unless `force`.
    """
    reporter = reporter or SilentReporter()
    concept_teacher = _source(data, teacher, dictionary).load(device or default_device())
    if dictionary.fingerprint not in (None, concept_teacher.dictionary.fingerprint()):
        raise CoCoMixError(
            f"the dictionary {dictionary.name} is not the one that dictionary.fingerprint pins: what is there now has "
            f"{concept_teacher.dictionary.fingerprint()}."
        )
    _check_tokenizer(concept_teacher.decoder.model, teacher, data)
    fit = measure_fit(concept_teacher, _first_blocks(data.split(VALIDATION), _CHECK_TOKENS))
    reporter.say(f"the dictionary on block {teacher.layer}: {fit.describe()}")
    mismatch = _bos_mismatch(data, concept_teacher)
    if mismatch is None:
        require_fit(fit, concept_teacher, force=force, reporter=reporter)
    else:
        reporter.say(f"the dictionary {mismatch.problem}")
        remedy = f"it {mismatch.problem}, so {mismatch.remedy}"
        require_fit(fit, concept_teacher, force=force, remedy=remedy, reporter=reporter)
    if settings.dtype == "float32":
        return OpenedTeacher(concept_teacher, None)
    sample = _first_blocks(data.split(VALIDATION), _AGREEMENT_TOKENS)
    narrow = settings.labeller(concept_teacher)
    agreement = measure_agreement(narrow, narrow.with_dtype("float32"), sample, settings.k)
    reporter.say(f"{settings.dtype} gives {agreement:.2%} of {sample.numel():,} positions the labels of float32")
    require_agreement(agreement, settings.dtype, force=force)
    return OpenedTeacher(concept_teacher, agreement)


def open_decoder(data: PreparedData, teacher: TeacherConfig, *, device: torch.device | None = None) -> FrozenDecoder:
    """Load a teacher without a dictionary.

    Args:
        data: prepared with the teacher's tokenizer.
        teacher: the language model, and the block whose output is read.
        device: where to put it; the best one by default.

    Raises:
        CoCoMixError: nothing can be loaded; the teacher reads another tokenizer, or has no such block.
    """
    model = load_teacher(teacher.model, revision=teacher.revision, device=device or default_device())
    _check_tokenizer(model, teacher, data)
    return FrozenDecoder(model, teacher.layer)


def layer_of_dictionary(path: str) -> int:
    """The layer a dictionary was fitted on, as `cocomix sae` noted it.

    Raises:
        CoCoMixError: the dictionary carries no such note, so the layer must be given.
    """
    report = Path(path) / "fit.json"
    if not report.is_file():
        raise CoCoMixError(f"which layer {path} describes is not recorded there; give it with --layer.")
    return FitReport.model_validate(read_json(report)).layer


class _BosMismatch(NamedTuple):
    problem: str
    remedy: str


def _bos_mismatch(data: PreparedData, teacher: ConceptTeacher) -> _BosMismatch | None:
    """How the contexts that a dictionary is said to be fitted on begin otherwise than the blocks; `None` if alike."""
    said, has = teacher.dictionary.prepend_bos, data.meta.bos_token_id is not None
    if said is None or said == has or (said and data.tokenizer().bos_token_id is None):
        return None
    if said:
        problem = "was fitted on contexts that begin with the begin-of-text token, which these blocks do not"
        return _BosMismatch(problem, "prepare the data with --prepend-bos")
    problem = "was fitted on contexts without the begin-of-text token, with which these blocks begin"
    return _BosMismatch(problem, "prepare the data without --prepend-bos")


def _source(data: PreparedData, teacher: TeacherConfig, dictionary: DictionaryConfig) -> TeacherSource:
    return TeacherSource(
        model=teacher.model,
        layer=teacher.layer,
        dictionary=dictionary.path,
        sae_id=dictionary.sae_id,
        revision=teacher.revision,
        bos_token_id=data.meta.bos_token_id,
    )


def _check_tokenizer(model: PreTrainedModel, teacher: TeacherConfig, data: PreparedData) -> None:
    """Refuse a teacher that reads another tokenizer than the data's."""
    check_tokenizer(
        int(model.get_input_embeddings().weight.shape[0]),
        tokenizer_fingerprint=data.meta.tokenizer_fingerprint,
        vocab_size=data.meta.vocab_size,
        teacher_tokenizer_fingerprint=_tokenizer_of(teacher),
    )


def _tokenizer_of(teacher: TeacherConfig) -> str | None:
    """Fingerprint of the tokenizer that comes with a teacher; `None` where none does."""
    try:
        return tokenizer_fingerprint(load_tokenizer(teacher.model, teacher.revision))
    except CoCoMixError:
        return None


def _first_blocks(blocks: TokenBlocks, tokens: int) -> Tensor:
    """The first blocks of a split, as many as hold `tokens` tokens. [blocks, block_size], int64"""
    count = min(len(blocks), max(1, tokens // blocks.block_size))
    rows: Sequence[Tensor] = [blocks[index]["input_ids"] for index in range(count)]
    return torch.stack(list(rows))
