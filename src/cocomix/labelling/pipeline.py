"""From prepared data to a dictionary and labels: where the rooms `data` and `concepts` meet."""

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from cocomix.concepts import (
    SAMPLE_TOKENS,
    ConceptTeacher,
    DictionaryConfig,
    TeacherConfig,
    TeacherLabeller,
    TeacherSource,
    build_labeller,
    check_labeller,
    check_tokenizer,
    first_blocks,
    load_teacher,
)
from cocomix.concepts.decoder import FrozenDecoder
from cocomix.data import TRAIN, VALIDATION, Tokens, TokenShard, tokenizer_fingerprint
from cocomix.labelling import LabelManifest, LabelSettings, RaySettings, ShardPart, write_labels, write_probabilities
from cocomix.labelling.probabilities import ProbabilityDtype, ProbabilityManifest
from cocomix.runtime.console import Reporter, SilentReporter
from cocomix.runtime.device import default_device
from cocomix.runtime.hub import NoTokenizer, load_tokenizer

__all__ = ["OpenedTeacher", "check_data_tokenizer", "distill_data", "label_data", "open_decoder", "open_teacher"]

_SHARD_TOKENS = 2**20


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
    data = Tokens.open(data_path)
    opened = open_teacher(data, teacher, dictionary, settings, force=force)
    return write_labels(
        opened.teacher,
        {name: _shards(data, name) for name in (TRAIN, VALIDATION)},
        output,
        settings,
        data_fingerprint=data.manifest.fingerprint,
        tokenizer_fingerprint=data.manifest.tokenizer_fingerprint,
        block_size=data.manifest.block_size,
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
    data = Tokens.open(data_path)
    return write_probabilities(
        open_decoder(data, teacher),
        {name: _shards(data, name) for name in (TRAIN, VALIDATION)},
        output,
        teacher_name=teacher.model,
        top_k=top_k,
        vocab_size=data.manifest.vocab_size,
        data_fingerprint=data.manifest.fingerprint,
        tokenizer_fingerprint=data.manifest.tokenizer_fingerprint,
        block_size=data.manifest.block_size,
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
    data: Tokens,
    teacher: TeacherConfig,
    dictionary: DictionaryConfig,
    settings: LabelSettings,
    *,
    device: torch.device | None = None,
    force: bool = False,
) -> OpenedTeacher:
    """Load a teacher with its dictionary and try both on a few validation blocks.

    Args:
        data: prepared with the teacher's tokenizer.
        teacher: the language model and the block that the dictionary describes.
        dictionary: the sparse autoencoder.
        settings: how labels are chosen.
        device: where to put both; the best one by default.
        force: warn where it would refuse.

    Raises:
        CoCoMixError: nothing can be loaded; the teacher reads another tokenizer; or as `check_labeller`.
    """
    labeller = build_labeller(
        settings.config(teacher, dictionary),
        device=device or default_device(),
        bos_token_id=data.manifest.bos_token_id,
        force=force,
    )
    assert isinstance(labeller, TeacherLabeller)
    check_data_tokenizer(labeller.teacher.decoder.model, teacher, data)
    sample = first_blocks(data.split(VALIDATION), SAMPLE_TOKENS)
    has_bos = data.tokenizer().bos_token_id is not None
    check = check_labeller(labeller, sample, k=settings.k, tokenizer_has_bos=has_bos, force=force)
    return OpenedTeacher(labeller.teacher, check.agreement)


def open_decoder(data: Tokens, teacher: TeacherConfig, *, device: torch.device | None = None) -> FrozenDecoder:
    """Load a teacher without a dictionary.

    Args:
        data: prepared with the teacher's tokenizer.
        teacher: the language model, and the block whose output is read.
        device: where to put it; the best one by default.

    Raises:
        CoCoMixError: nothing can be loaded; the teacher reads another tokenizer, or has no such block.
    """
    model = load_teacher(teacher.model, revision=teacher.revision, device=device or default_device())
    check_data_tokenizer(model, teacher, data)
    return FrozenDecoder(model, teacher.layer)


def _source(data: Tokens, teacher: TeacherConfig, dictionary: DictionaryConfig) -> TeacherSource:
    return TeacherSource(
        model=teacher.model,
        layer=teacher.layer,
        dictionary=dictionary.path,
        sae_id=dictionary.sae_id,
        revision=teacher.revision,
        bos_token_id=data.manifest.bos_token_id,
    )


def check_data_tokenizer(model: PreTrainedModel, teacher: TeacherConfig, data: Tokens) -> None:
    """Refuse a teacher that reads another tokenizer than the data's."""
    check_tokenizer(
        int(model.get_input_embeddings().weight.shape[0]),
        tokenizer_fingerprint=data.manifest.tokenizer_fingerprint,
        vocab_size=data.manifest.vocab_size,
        teacher_tokenizer_fingerprint=_tokenizer_of(teacher),
    )


def _tokenizer_of(teacher: TeacherConfig) -> str | None:
    """Fingerprint of the tokenizer that comes with a teacher; `None` where none does."""
    try:
        return tokenizer_fingerprint(load_tokenizer(teacher.model, teacher.revision))
    except NoTokenizer:
        return None


def _shards(data: Tokens, split: str) -> list[TokenShard]:
    return data.shards(split, max(1, _SHARD_TOKENS // data.manifest.block_size))
