"""Teachers and labellers, loaded for a data set and tried on it; and what is computed with them of its token blocks."""

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import cocomix.model  # noqa: F401 - registers the model type, so that a student can be a teacher
from cocomix.concepts import (
    SAMPLE_TOKENS,
    Agreement,
    AlignedFittedTeacher,
    AlignedTeacher,
    AlignedTexts,
    ConceptLabeller,
    FittedLabeller,
    FittedTeacherLabeller,
    FrozenDecoder,
    LabellerConfig,
    LoadedTeachers,
    TeacherConfig,
    TeacherLabeller,
    TeacherLabellerConfig,
    TokenLookupLabeller,
    Vocabulary,
    build_labeller,
    check_labeller,
    first_blocks,
    spread_blocks,
)
from cocomix.data import TRAIN, VALIDATION, Tokens, TokensManifest, tokenizer_fingerprint
from cocomix.labelling.distillers import AlignedDistiller, PlainDistiller
from cocomix.labelling.map_shards import Arrays, ShardFunction
from cocomix.labelling.stored_arrays import Layout
from cocomix.labelling.stored_labels import encode_labels
from cocomix.labelling.stored_probabilities import ProbabilityDtype, TargetKind
from cocomix.runtime.console import progress
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)

_LONGEST_WINDOW = 2048  # tokens, of a teacher whose configuration names no limit
_BATCH_TOKENS = 4096  # of the sample that a labeller learns from


def open_labeller(
    tokens: Tokens,
    config: LabellerConfig,
    *,
    device: torch.device | None = None,
    tables: dict[str, Tensor] | None = None,
    force: bool = False,
    teachers: LoadedTeachers | None = None,
) -> tuple[ConceptLabeller, Agreement | None]:
    """Load a labeller, have it learn its first pass if it has one, and try its teacher on a few validation blocks.

    Arguments are those of `build_labeller`, the best device by default.

    Returns:
        The labeller, and its agreement with the labels of the same teacher in float32 (see `check_labeller`).

    Raises:
        CoCoMixError: nothing can be loaded; the teacher reads another tokenizer; or as `check_labeller`.
    """
    device = device or default_device()
    labeller = load_labeller(tokens, config, device=device, tables=tables, force=force, teachers=teachers)
    if isinstance(labeller, FittedLabeller) and not labeller.tables():
        if TRAIN not in tokens.manifest.splits:
            raise CoCoMixError(
                f"labels of kind {config.kind!r} need training blocks to learn from, which a stream lacks."
            )
        blocks = spread_blocks(tokens.split(TRAIN), labeller.sample_tokens)
        with progress(f"learning {config.kind} from a sample", blocks.numel(), "tokens") as advance:
            labeller = labeller.fit(_counted(blocks, advance))
    if not isinstance(config, TeacherLabellerConfig):
        return labeller, None
    sample, has_bos = first_blocks(tokens.split(VALIDATION), SAMPLE_TOKENS), tokens.tokenizer().bos_token_id is not None
    if isinstance(labeller, AlignedTeacher):
        return labeller, check_labeller(labeller.inner, labeller.texts.blocks(sample), k=config.k, force=force)
    return labeller, check_labeller(labeller, sample, k=config.k, tokenizer_has_bos=has_bos, force=force)


def fit_flops(tokens: Tokens, labeller: ConceptLabeller) -> float:
    """FLOPs of a labeller's first pass over a sample, by formula; 0 where it has none, or no model runs in it."""
    if not isinstance(labeller, FittedTeacherLabeller | AlignedFittedTeacher):
        return 0.0
    size = tokens.manifest.block_size
    blocks = min(tokens.manifest.splits[TRAIN].blocks, max(1, labeller.sample_tokens // size))  # as `spread_blocks`
    return blocks * size * labeller.fit_flops_per_token(size)


def _counted(blocks: Tensor, advance: Callable[[float], Any]) -> Iterator[Tensor]:
    """Batches of blocks, each reported when the next is asked for."""
    for batch in torch.split(blocks, max(1, _BATCH_TOKENS // blocks.shape[1])):
        yield batch
        advance(batch.numel())


@dataclass(frozen=True)
class SentTokens:
    """What a worker is sent of a data set, so that it needs no folder of it: `sent` is its tokenizer, if needed."""

    manifest: TokensManifest
    sent: PreTrainedTokenizerFast | None = None

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """As `Tokens.tokenizer`."""
        assert self.sent is not None
        return self.sent


def load_labeller(
    tokens: Tokens | SentTokens,
    config: LabellerConfig,
    *,
    device: torch.device,
    tables: Mapping[str, Tensor] | None = None,
    force: bool = False,
    teachers: LoadedTeachers | None = None,
) -> ConceptLabeller:
    """Load a labeller for a data set; one whose teacher has another tokenizer is aligned by bytes (`AlignedTeacher`).

    Raises:
        CoCoMixError: nothing can be loaded, or the tokenizers differ and labels cannot be carried over.
    """
    meta = tokens.manifest
    vocabulary = Vocabulary(meta.vocab_size, meta.eos_token_id, meta.bos_token_id)
    if not isinstance(config, TeacherLabellerConfig) or config.teacher is None:
        return build_labeller(config, device=device, vocabulary=vocabulary, tables=tables, force=force)
    teachers = teachers or LoadedTeachers()
    found = teachers.tokenizer(config.teacher)
    same = found is None or tokenizer_fingerprint(found) == meta.tokenizer_fingerprint
    own = vocabulary if same else None  # the teacher's texts begin as its tokenizer has it
    labeller = build_labeller(config, device=device, vocabulary=own, tables=tables, force=force, teachers=teachers)
    assert isinstance(labeller, TeacherLabeller)
    model = labeller.teacher.decoder.model
    if found is None or same:
        check_tokenizer(model, found, tokens)
        return labeller
    if isinstance(labeller, TokenLookupLabeller):
        raise CoCoMixError(
            f"labels of kind {config.kind} are looked up by the data's own tokens, but {config.teacher.model} has "
            "another tokenizer; prepare the data with the teacher's tokenizer, or choose another kind."
        )
    aligned = AlignedFittedTeacher if isinstance(labeller, FittedTeacherLabeller) else AlignedTeacher
    return aligned(labeller, aligned_texts(tokens, model, found))


def targets_for(
    tokens: Tokens, teacher: TeacherConfig, kind: TargetKind | Literal["auto"], teachers: LoadedTeachers
) -> TargetKind:
    """The kind of targets that suits a teacher's tokenizer and the data's, see `distill_data`."""
    found = teachers.tokenizer(teacher)
    same = found is None or tokenizer_fingerprint(found) == tokens.manifest.tokenizer_fingerprint
    if kind in ("uld", "alm") and found is None:
        raise CoCoMixError(
            f"{teacher.model} comes without a tokenizer, which targets of kind {kind} are aligned by; add its "
            "tokenizer's files to its folder."
        )
    if kind == "top_k" and not same:
        raise CoCoMixError(
            f"{teacher.model} has another tokenizer than the data, so that its tokens are not the student's; choose "
            "the kind first_token, uld or alm, or prepare the data with the teacher's tokenizer."
        )
    if kind == "auto" or kind == "first_token":
        if kind == "first_token" and same:
            logger.info("%s has the data's tokenizer: its first-token marginal is its distribution", teacher.model)
        return "top_k" if same else "first_token"
    return kind


def aligned_texts(
    tokens: Tokens | SentTokens, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> AlignedTexts:
    """A data set's blocks as a teacher of another tokenizer reads them."""
    longest = int(getattr(model.config, "max_position_embeddings", None) or _LONGEST_WINDOW)
    fingerprints = {"student": tokens.manifest.tokenizer_fingerprint, "teacher": tokenizer_fingerprint(tokenizer)}
    return AlignedTexts(tokens.tokenizer(), tokenizer, longest, fingerprints)


def open_decoder(tokens: Tokens, teacher: TeacherConfig, *, device: torch.device | None = None) -> FrozenDecoder:
    """Load a teacher without a dictionary, onto the best device by default; refused if it reads another tokenizer."""
    teachers = LoadedTeachers()
    model = teachers.model(teacher, device or default_device())
    check_tokenizer(model, teachers.tokenizer(teacher), tokens)
    return FrozenDecoder(model, teacher.layer)


def check_tokenizer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, tokens: Tokens | SentTokens
) -> None:
    """Refuse a teacher that reads another tokenizer than the data's.

    Where the teacher's tokenizer is not known (a folder with weights only), the vocabulary size is all there is to
    compare: the teacher's embedding must have as many rows as the data's tokenizer has tokens, or up to 2% or 1,024
    more, as embeddings are often padded.
    """
    meta, rows = tokens.manifest, int(model.get_input_embeddings().weight.shape[0])
    if tokenizer is not None:
        if tokenizer_fingerprint(tokenizer) != meta.tokenizer_fingerprint:
            raise CoCoMixError(
                "the teacher's tokenizer is not the one the data set was prepared with; prepare the data with the "
                "teacher's tokenizer, choose a teacher of this tokenizer, or distil beforehand (`cocomix distill`)."
            )
    elif not meta.vocab_size <= rows <= meta.vocab_size + max(1024, meta.vocab_size // 50):
        raise CoCoMixError(
            f"the teacher's embedding has {rows} rows but the data's tokenizer has {meta.vocab_size} tokens; prepare "
            "the data with the teacher's tokenizer."
        )


class BlockFunction(ShardFunction):
    """A function of token blocks, computed a batch of `batch` blocks at a time."""

    batch: int

    def __call__(self, tokens: NDArray[Any]) -> Arrays:
        rows = torch.from_numpy(tokens.astype(np.int64))
        batches = [self.arrays(batch) for batch in torch.split(rows, self.batch)]
        return {name: np.concatenate([arrays[name] for arrays in batches]) for name in batches[0]}

    @abstractmethod
    def arrays(self, input_ids: Tensor) -> Arrays:
        """The arrays of one batch, int64 [batch, block_size]."""


@dataclass
class ModelFunction(BlockFunction):
    """A function of token blocks that needs a model."""

    layouts: Mapping[str, Layout]  # of the arrays it returns
    block_size: int
    batch: int
    made_with: Mapping[str, str]  # fingerprints that the model must have wherever it is loaded
    model: Any  # if it is loaded; it does not travel to workers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "model": None}

    @property
    def columns(self) -> dict[str, str]:
        """The arrays that a folder of them alone keeps."""
        return {name: name for name in self.layouts}

    def setup(self, device: torch.device, teachers: LoadedTeachers | None = None) -> None:
        """See `ShardFunction`; with teachers that may be loaded already."""
        if self.model is not None:
            return
        self.model = self.load(teachers or LoadedTeachers(), device)
        found = {**self.model.fingerprint(), "code": code_version()}
        differing = [name for name, value in self.made_with.items() if found.get(name) != value]
        if differing:
            raise CoCoMixError(
                f"a worker finds another {', '.join(differing)} than the process that started it; bring all nodes to "
                "the same versions and files."
            )

    @abstractmethod
    def load(self, teachers: LoadedTeachers, device: torch.device) -> Any:
        """Load the model."""


@dataclass
class LabelFunction(ModelFunction):
    """Concept labels."""

    verb = "label"

    config: LabellerConfig
    tokens: SentTokens
    tables: Mapping[str, Tensor]
    force: bool

    def load(self, teachers: LoadedTeachers, device: torch.device) -> ConceptLabeller:
        return load_labeller(
            self.tokens, self.config, device=device, tables=self.tables, force=self.force, teachers=teachers
        )

    def arrays(self, input_ids: Tensor) -> Arrays:
        return encode_labels(self.model.label(input_ids, k=self.config.k), self.layouts)


@dataclass
class DistillFunction(ModelFunction):
    """What a teacher predicts."""

    verb = "distill"

    teacher: TeacherConfig
    targets: TargetKind
    top_k: int
    dtype: ProbabilityDtype
    tokens: SentTokens

    def load(self, teachers: LoadedTeachers, device: torch.device) -> PlainDistiller:
        model, found = teachers.model(self.teacher, device), teachers.tokenizer(self.teacher)
        decoder, meta = FrozenDecoder(model, 0), self.tokens.manifest
        if self.targets == "top_k":
            check_tokenizer(model, found, self.tokens)
            return PlainDistiller(decoder, self.top_k, meta.vocab_size, self.dtype)
        assert found is not None  # `targets_for` refused otherwise
        texts = aligned_texts(self.tokens, model, found)
        return AlignedDistiller(decoder, self.top_k, meta.vocab_size, self.dtype, self.targets, texts)

    def arrays(self, input_ids: Tensor) -> Arrays:
        found = self.model.arrays(input_ids)
        return {name: found[name].astype(layout.dtype) for name, layout in self.layouts.items()}


@dataclass
class OnePass(BlockFunction):
    """Labels and probabilities of one forward pass: labels are made of the hidden states that it went through."""

    verb = "label and distill"

    # of the same teacher as `probabilities`, in the same number format and as many blocks at a time; of a kind that
    # reads nothing else of it (`TeacherLabeller.reads_hidden`)
    labels: LabelFunction
    probabilities: DistillFunction

    def __post_init__(self) -> None:
        self.block_size, self.batch = self.labels.block_size, self.labels.batch

    @property
    def decoder(self) -> FrozenDecoder:
        """The teacher, as the labeller over the teacher's tokens reads it."""
        labeller = self.labels.model
        inner = labeller.inner if isinstance(labeller, AlignedTeacher) else labeller
        assert isinstance(inner, TeacherLabeller)
        return inner.teacher.decoder

    def columns_of(self, of: str) -> dict[str, str]:
        """The arrays of `labels` or `probabilities`, each with its name among those of both."""
        return {name: f"{of}/{name}" for name in getattr(self, of).layouts}

    def setup(self, device: torch.device) -> None:
        teachers = LoadedTeachers()
        self.labels.setup(device, teachers)
        self.probabilities.setup(device, teachers)

    def arrays(self, input_ids: Tensor) -> Arrays:
        with self.decoder.captured() as hidden:
            probabilities = self.probabilities.arrays(input_ids)
        # Nothing was captured where the batch holds no text for a teacher of another tokenizer.
        with self.decoder.having_read(hidden[0] if hidden else None):
            labels = self.labels.arrays(input_ids)
        found = {"labels": labels, "probabilities": probabilities}
        return {f"{of}/{name}": array for of, arrays in found.items() for name, array in arrays.items()}


@cache
def code_version() -> str:
    """A hash of the source that computes: an unfinished folder must not be gone on with by another version of it."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(path for room in ("concepts", "labelling") for path in (package / room).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
