"""What is computed of every shard of tokens: concept labels, a teacher's distributions, or both of one forward pass."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cocomix.concepts import (
    AlignedTeacher,
    ConceptLabeller,
    FrozenDecoder,
    LabellerConfig,
    LoadedTeachers,
    TeacherConfig,
    TeacherLabeller,
)
from cocomix.data import tokenizer_fingerprint
from cocomix.labelling.distillers import AlignedDistiller, PlainDistiller
from cocomix.labelling.map_shards import ShardFunction
from cocomix.labelling.opening import SentTokens, check_tokenizer, load_labeller, longest_window
from cocomix.labelling.part_folder import Arrays
from cocomix.labelling.stored_arrays import Layout
from cocomix.labelling.stored_labels import encode_labels
from cocomix.labelling.stored_probabilities import ProbabilityDtype, TargetKind
from cocomix.runtime.errors import CoCoMixError


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

    def setup(self, device: torch.device) -> None:
        self.setup_with(LoadedTeachers(), device)

    def setup_with(self, teachers: LoadedTeachers, device: torch.device) -> None:
        """As `setup`, with teachers that may be loaded already."""
        if self.model is not None:
            return
        self.model = self.load(teachers, device)
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

    def arrays(self, input_ids: Tensor, hidden: Tensor | None = None) -> Arrays:
        """The arrays of one batch; `hidden` is the output of the teacher's hooked block, if it is known already."""
        labeller = self.model if hidden is None else self.model.having_read(hidden)
        return encode_labels(labeller.label(input_ids, k=self.config.k), self.layouts)


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
        return AlignedDistiller(
            decoder,
            self.top_k,
            meta.vocab_size,
            self.dtype,
            self.targets,
            self.tokens.tokenizer(),
            found,
            {"student": meta.tokenizer_fingerprint, "teacher": tokenizer_fingerprint(found)},
            longest_window(model),
        )

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
        self.labels.setup_with(teachers, device)
        self.probabilities.setup_with(teachers, device)

    def arrays(self, input_ids: Tensor) -> Arrays:
        with self.decoder.captured() as hidden:
            probabilities = self.probabilities.arrays(input_ids)
        # Nothing was captured where the batch holds no text for a teacher of another tokenizer.
        labels = self.labels.arrays(input_ids, hidden[0] if hidden else None)
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
