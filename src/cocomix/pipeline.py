"""From prepared data to a dictionary and labels: where the rooms `data` and `concepts` meet."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.concepts import (
    ConceptDictionary,
    ConceptTeacher,
    FitReport,
    FitSettings,
    LabelManifest,
    LabelSettings,
    check_tokenizer,
    fit_dictionary,
    load_teacher,
    measure_fit,
    require_fit,
    write_labels,
)
from cocomix.config import DictionaryConfig, TeacherConfig
from cocomix.data import TRAIN, VALIDATION, PreparedData, TokenBlocks, load_tokenizer, tokenizer_fingerprint
from cocomix.device import default_device
from cocomix.errors import CoCoMixError
from cocomix.output import explained_full_disk, read_json
from cocomix.reporter import Reporter, SilentReporter

__all__ = ["fit_on_data", "label_data", "layer_of_dictionary"]

_CHECK_TOKENS = 8192


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
    model = _load(teacher, data)
    with explained_full_disk(output):
        return fit_dictionary(
            model,
            teacher.layer,
            data.split(TRAIN).shards,
            _first_blocks(data.split(VALIDATION), _CHECK_TOKENS),
            output,
            settings,
            teacher_name=teacher.model,
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
    reporter: Reporter | None = None,
) -> LabelManifest:
    """Label every token of prepared data with concepts (`cocomix label`).

    Before the first label, the dictionary is tried on a few validation blocks; one that does not describe the layer is
    refused unless `force`.

    Args:
        data_path: folder written by `cocomix prepare` with the teacher's tokenizer.
        teacher: the language model and the block that the dictionary describes.
        dictionary: the sparse autoencoder.
        output: folder to write; an interrupted run goes on at the next shard.
        settings: how labels are chosen.
        force: use a dictionary that does not fit all the same.
        batch_tokens: tokens per forward pass.
        reporter: told about progress.
    """
    reporter = reporter or SilentReporter()
    data = PreparedData.open(data_path)
    sae = ConceptDictionary.from_sae_lens(dictionary.path, dictionary.sae_id)
    concept_teacher = ConceptTeacher(_load(teacher, data), sae, teacher.layer, name=teacher.model)
    fit = measure_fit(concept_teacher, _first_blocks(data.split(VALIDATION), _CHECK_TOKENS))
    reporter.say(f"the dictionary on block {teacher.layer}: {fit.describe()}")
    require_fit(fit, concept_teacher, force=force, reporter=reporter)
    return write_labels(
        concept_teacher,
        {name: data.split(name).shards for name in (TRAIN, VALIDATION)},
        output,
        settings,
        data_fingerprint=data.meta.fingerprint,
        tokenizer_fingerprint=data.meta.tokenizer_fingerprint,
        block_size=data.meta.block_size,
        batch_tokens=batch_tokens,
        reporter=reporter,
    )


def layer_of_dictionary(path: str) -> int:
    """The layer a dictionary was fitted on, as `cocomix sae` noted it.

    Raises:
        CoCoMixError: the dictionary carries no such note, so the layer must be given.
    """
    report = Path(path) / "fit.json"
    if not report.is_file():
        raise CoCoMixError(f"which layer {path} describes is not recorded there; give it with --layer.")
    return FitReport.model_validate(read_json(report)).layer


def _load(teacher: TeacherConfig, data: PreparedData) -> PreTrainedModel:
    """The teacher, on the best device, after a check that it reads the data's tokenizer."""
    model = load_teacher(teacher.model, revision=teacher.revision, device=default_device())
    check_tokenizer(
        int(model.get_input_embeddings().weight.shape[0]),
        tokenizer_fingerprint=data.meta.tokenizer_fingerprint,
        vocab_size=data.meta.vocab_size,
        teacher_tokenizer_fingerprint=_tokenizer_of(teacher.model),
    )
    return model


def _tokenizer_of(model: str) -> str | None:
    """Fingerprint of the tokenizer that comes with a model; `None` where none does."""
    try:
        return tokenizer_fingerprint(load_tokenizer(model))
    except CoCoMixError:
        return None


def _first_blocks(blocks: TokenBlocks, tokens: int) -> Tensor:
    """The first blocks of a split, as many as hold `tokens` tokens. [blocks, block_size], int64"""
    count = min(len(blocks), max(1, tokens // blocks.block_size))
    rows: Sequence[Tensor] = [blocks[index]["input_ids"] for index in range(count)]
    return torch.stack(list(rows))
