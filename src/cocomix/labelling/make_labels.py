"""The two functions that are computed of every shard of tokens: concept labels, and a teacher's distributions."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from cocomix.artifacts import partial_path
from cocomix.concepts import (
    AlignedTeacher,
    ConceptLabeller,
    FittedLabeller,
    LabellerConfig,
    LoadedTeachers,
    TeacherConfig,
    TeacherLabellerConfig,
    files_fingerprint,
)
from cocomix.data import Tokens
from cocomix.labelling.distillers import Distiller
from cocomix.labelling.map_shards import Arrays
from cocomix.labelling.opening import (
    DistillSettings,
    SentTokens,
    load_distiller,
    load_labeller,
    open_labeller,
    targets_for,
)
from cocomix.labelling.stored_arrays import Layout
from cocomix.labelling.stored_labels import TABLES, Labels, Scores, encode_labels, label_layouts
from cocomix.labelling.stored_probabilities import (
    ProbabilityDtype,
    TargetKind,
    TeacherProbabilities,
    probability_layouts,
)
from cocomix.labelling.storing import Job, made, store
from cocomix.runtime.device import default_device, fast_bfloat16
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)

_DEFAULT_TOP_K: dict[TargetKind, int] = {"top_k": 64, "first_token": 32, "uld": 32, "alm": 0}


def label_data(
    data: Path | str,
    config: LabellerConfig,
    output: Path,
    *,
    scores: Scores = "float16",
    force: bool = False,
    blocks: int | None = None,
    job: Job | None = None,
    teachers: LoadedTeachers | None = None,
) -> Labels | None:
    """Label every token of a data set with concepts (`cocomix label`), or those of one job's part of its shards.

    Args:
        data: folder written by `cocomix prepare`.
        config: settings of the labeller.
        output: folder to write.
        scores: type in which scores are kept; `none` halves the room on the disk.
        force: go on with a dictionary or a dtype that `open_labeller` would refuse.
        blocks: label only so many training blocks, from the beginning; all by default. Other splits are labelled whole.
        teachers: where the teacher is found, so that several calls share it; loaded for this call alone by default.

    Returns:
        The labels; None while shards are left to other jobs.

    Raises:
        CoCoMixError: as `open_labeller` and `store`.
    """
    job, tokens, config = job or Job(), Tokens.open(data), config.resolved(default_device())
    block_size, batch = tokens.manifest.block_size, job.batch(tokens.manifest.block_size)
    labels = config.model_dump(mode="json")
    identity = {"tokens": tokens.manifest.fingerprint, "labels": labels, "scores": scores, "blocks_per_batch": batch}
    identity |= {} if blocks is None else {"blocks": blocks}
    if (whole := made(Labels, output, identity)) is not None:
        return whole
    begun = partial_path(output) / TABLES
    labeller, agreement = open_labeller(
        tokens, config, tables=load_file(begun) if begun.is_file() else None, force=force, teachers=teachers
    )
    fingerprint, count = labeller.fingerprint(), labeller.num_concepts
    tables = labeller.tables() if isinstance(labeller, FittedLabeller) else {}
    made_with = {name: value for name, value in fingerprint.items() if name not in (*labels, "configuration")}
    made_with["code"] = _code_version()
    function = _LabelFunction(
        label_layouts(block_size, config.k, count, scores),
        block_size,
        batch,
        made_with,
        labeller,
        config,
        SentTokens(tokens.manifest, tokens.tokenizer() if isinstance(labeller, AlignedTeacher) else None),
        tables,
        force,
    )
    about = {
        "made_from": _made_from(tokens, fingerprint),
        "labels": labels,
        "labeller": fingerprint,
        "num_concepts": count,
        "scores": scores,
        "teacher_files": _files_of(config.teacher if isinstance(config, TeacherLabellerConfig) else None),
        "agreement_with_float32": None if agreement is None else agreement.equal_sets,
        "score_kept_of_float32": None if agreement is None else agreement.score_kept,
        "flops_per_token": labeller.flops_per_token(block_size),
    }
    files = {TABLES: lambda path: save_file(tables, path)} if tables else {}
    return store(Labels, output, tokens, function, {**identity, "made_with": made_with}, about, job, blocks, files)


def distill_data(
    data: Path | str,
    teacher: TeacherConfig,
    output: Path,
    *,
    kind: TargetKind | Literal["auto"] = "auto",
    top_k: int | None = None,
    dtype: ProbabilityDtype | Literal["auto"] = "float32",
    blocks: int | None = None,
    job: Job | None = None,
    teachers: LoadedTeachers | None = None,
) -> TeacherProbabilities | None:
    """Store what a teacher predicts on a data set (`cocomix distill`), or on one job's part of its shards.

    Args:
        data: folder written by `cocomix prepare`.
        teacher: the language model; its layer plays no part.
        output: folder to write.
        kind: of the targets. `auto` is `top_k` where the teacher has the data's tokenizer, and `first_token` where it
            has another one. The first-token marginal of a teacher of the data's tokenizer is its `top_k`.
        top_k: probabilities kept per position, by default 64 of `top_k` and 32 of the others; with the size of the
            vocabulary, the whole distribution. Not for `alm`.
        dtype: what the teacher runs in; `auto` is bfloat16 on a GPU and on a CPU with AMX, else float32.
        blocks: as in `label_data`.
        teachers: as in `label_data`.

    Returns:
        The targets; None while shards are left to other jobs.

    Raises:
        CoCoMixError: `top_k` is out of range; the kind does not suit the tokenizers; as `load_distiller` and `store`.
    """
    job, tokens, device = job or Job(), Tokens.open(data), default_device()
    vocab_size, block_size = tokens.manifest.vocab_size, tokens.manifest.block_size
    teachers = teachers or LoadedTeachers()
    targets = targets_for(tokens, teacher, kind, teachers)
    if targets == "alm" and top_k is not None:
        raise CoCoMixError("the kind alm stores one number a chunk of text; leave top_k out.")
    kept = top_k if top_k is not None else _DEFAULT_TOP_K[targets]
    if targets != "alm" and not 1 <= kept <= vocab_size:
        raise CoCoMixError(f"top_k={kept} must be between 1 and the {vocab_size} tokens of the vocabulary.")
    if dtype == "auto":
        dtype = "bfloat16" if fast_bfloat16(device) else "float32"
        logger.info("dtype auto: the teacher runs in %s on this %s", dtype, device.type)
    batch, source = job.batch(block_size), teacher.model_dump(mode="json", exclude={"layer"})
    identity = {
        "tokens": tokens.manifest.fingerprint,
        "teacher": source,
        "top_k": kept,
        "dtype": dtype,
        "blocks_per_batch": batch,
        **({} if targets == "top_k" else {"targets": targets}),
        **({} if blocks is None else {"blocks": blocks}),
    }
    if (whole := made(TeacherProbabilities, output, identity)) is not None:
        return whole
    sent = SentTokens(tokens.manifest, None if targets == "top_k" else tokens.tokenizer())
    settings = DistillSettings(teacher, targets, kept, dtype)
    distiller = load_distiller(tokens, settings, device=device, teachers=teachers)
    fingerprint = distiller.fingerprint()
    made_with = {**fingerprint, "code": _code_version()}
    layouts = probability_layouts(block_size, kept, vocab_size, targets)
    function = _DistillFunction(layouts, block_size, batch, made_with, distiller, settings, sent)
    about = {
        "made_from": _made_from(tokens, fingerprint),
        "teacher": teacher.model,
        "teacher_files": _files_of(teacher),
        "vocab_size": vocab_size,
        "top_k": kept,
        "dtype": dtype,
        "targets": targets,
        "flops_per_token": distiller.flops_per_token(block_size),
    }
    return store(
        TeacherProbabilities, output, tokens, function, {**identity, "made_with": made_with}, about, job, blocks
    )


@dataclass
class _BlockFunction(ABC):
    """A function of token blocks that needs a model; see `cocomix.labelling.map_shards.ShardFunction`.

    Attributes:
        layouts: of the arrays it returns.
        block_size: tokens per block.
        batch: blocks of a forward pass.
        made_with: fingerprints that the model must have wherever it is loaded.
        model: if it is loaded; it does not travel to workers.
    """

    verb: ClassVar[str]

    layouts: Mapping[str, Layout]
    block_size: int
    batch: int
    made_with: Mapping[str, str]
    model: Any

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "model": None}

    @property
    def columns(self) -> list[str]:
        return list(self.layouts)

    def setup(self, device: torch.device) -> None:
        if self.model is not None:
            return
        self.model = self.load(device)
        found = {**self.fingerprint(), "code": _code_version()}
        differing = [name for name, value in self.made_with.items() if found.get(name) != value]
        if differing:
            raise CoCoMixError(
                f"a worker finds another {', '.join(differing)} than the process that started it; bring all nodes to "
                "the same versions and files."
            )

    def __call__(self, tokens: NDArray[Any]) -> Arrays:
        rows = torch.from_numpy(tokens.astype(np.int64))
        batches = [self.arrays(batch) for batch in torch.split(rows, self.batch)]
        return {name: np.concatenate([arrays[name] for arrays in batches]) for name in self.layouts}

    @abstractmethod
    def load(self, device: torch.device) -> Any:
        """Load the model."""

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """Of the loaded model."""

    @abstractmethod
    def arrays(self, input_ids: Tensor) -> Arrays:
        """The arrays of one batch, int64 [batch, block_size]."""


@dataclass
class _LabelFunction(_BlockFunction):
    verb = "label"

    config: LabellerConfig
    tokens: SentTokens
    tables: Mapping[str, Tensor]
    force: bool

    def load(self, device: torch.device) -> ConceptLabeller:
        return load_labeller(self.tokens, self.config, device=device, tables=self.tables, force=self.force)

    def fingerprint(self) -> dict[str, str]:
        found: dict[str, str] = self.model.fingerprint()
        return found

    def arrays(self, input_ids: Tensor) -> Arrays:
        return encode_labels(self.model.label(input_ids, k=self.config.k), self.layouts)


@dataclass
class _DistillFunction(_BlockFunction):
    verb = "distill"

    settings: DistillSettings
    tokens: SentTokens

    def load(self, device: torch.device) -> Distiller:
        return load_distiller(self.tokens, self.settings, device=device, teachers=LoadedTeachers())

    def fingerprint(self) -> dict[str, str]:
        found: dict[str, str] = self.model.fingerprint()
        return found

    def arrays(self, input_ids: Tensor) -> Arrays:
        found = self.model.arrays(input_ids)
        return {name: found[name].astype(layout.dtype) for name, layout in self.layouts.items()}


def _made_from(tokens: Tokens, fingerprint: Mapping[str, str]) -> dict[str, str]:
    """Hashes of what something was made from, by role."""
    models = {role: fingerprint[role] for role in ("weights", "dictionary", "table") if role in fingerprint}
    return {"tokens": tokens.manifest.fingerprint, "tokenizer": tokens.manifest.tokenizer_fingerprint, **models}


def _files_of(teacher: TeacherConfig | None) -> str | None:
    return None if teacher is None else files_fingerprint(teacher.model)


@cache
def _code_version() -> str:
    """A hash of the source that computes: an unfinished folder must not be gone on with by another version of it."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(path for room in ("concepts", "labelling") for path in (package / room).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
