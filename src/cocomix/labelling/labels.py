"""Concept labels on disk, beside the tokens they belong to.

    LABELS/
      manifest.json      what the labels are of and how they were made (`LabelManifest`)
      train/00000.arrow  same shards and row order as the tokens; one row is one block, with the columns
                           concept_ids     block_size · k ids: uint16, 65,535 = no label, up to 65,535 concepts; else
                           int32, −1 concept_scores  block_size · k scores: float16 or float32, 0 where there is no
                           label

Scores are gradients of the *summed* next-token loss (nats) times the activation, so that they do not depend on how the
blocks were batched.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.utils.data import Dataset

from cocomix.artifacts.output import partial_path, read_json
from cocomix.artifacts.remote import known_size, local_folder
from cocomix.concepts import (
    ActivationLabeller,
    AttributionLabeller,
    ConceptTeacher,
    DictionaryConfig,
    LabellerConfig,
    RandomLabeller,
    TeacherConfig,
    TeacherLabeller,
    labeller_config,
)
from cocomix.concepts.labeller import IGNORE
from cocomix.labelling.columns import ShardColumns
from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "FORMAT_VERSION",
    "SHARD_NAME",
    "ConceptLabelStore",
    "DictionaryRecord",
    "LabelBlocks",
    "LabelManifest",
    "LabelSettings",
    "LabelShard",
    "LabelStatistics",
    "Record",
    "TeacherRecord",
    "id_storage",
    "read_label_manifest",
]

FORMAT_VERSION = 1
SHARD_NAME = r"^\w+/\w+$"
"""A split and a number: a manifest names no files elsewhere."""


class LabelSettings(BaseModel):
    """How labels are chosen and stored.

    Attributes:
        activation: of `selection="attribution"`, see `cocomix.concepts.scoring`.
        gradient: of `selection="attribution"`, see `ConceptTeacher.label`.
        sign: of `selection="attribution"`, see `cocomix.concepts.scoring`.
        selection: the kind of labeller.
        seed: of `selection="random"`.
        dtype: `bfloat16` and `float16` run the teacher under autocast. Scores and the dictionary stay in float32.
        k: labels per position (K_attr).
        score_dtype: of the stored scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    activation: Literal["latent", "pre"] = "latent"
    gradient: Literal["sequence", "next"] = "sequence"
    sign: Literal["loss", "logprob", "abs"] = "loss"
    selection: Literal["attribution", "activation", "random"] = "attribution"
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    k: int = Field(default=4, ge=1)
    score_dtype: Literal["float16", "float32"] = "float16"

    def config(self, teacher: TeacherConfig, dictionary: DictionaryConfig) -> LabellerConfig:
        """The configuration of the labeller that chooses labels so."""
        own = {"attribution": {"activation", "gradient", "sign"}, "random": {"seed"}, "activation": set()}
        values = self.model_dump(include={"k", "dtype", *own[self.selection]})
        return labeller_config({"kind": self.selection, "teacher": teacher, "dictionary": dictionary, **values})

    def labeller(self, teacher: ConceptTeacher) -> TeacherLabeller:
        """The labeller that chooses labels so."""
        if self.selection == "activation":
            return ActivationLabeller(teacher, dtype=self.dtype)
        if self.selection == "random":
            return RandomLabeller(teacher, seed=self.seed, dtype=self.dtype)
        options = self.model_dump(include={"activation", "gradient", "sign", "dtype"})
        return AttributionLabeller(teacher, **options)


class Record(BaseModel):
    """A part of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TeacherRecord(Record):
    """Which model the labels come from: where it was loaded from, hash of its weights, rows of its embedding."""

    name: str
    fingerprint: str
    vocab_size: int


class DictionaryRecord(Record):
    """Which dictionary the labels come from: where it was loaded from, hash, kind and size."""

    name: str
    fingerprint: str
    kind: str
    num_concepts: int


class LabelShard(Record):
    """One file of labels: its name (`train/00000`), rows and SHA-256."""

    name: str = Field(pattern=SHARD_NAME)
    blocks: int
    sha256: str


class LabelStatistics(Record):
    """Counts over all splits, and how fast the last run went.

    Attributes:
        labelled_positions: positions with at least one label.
        masked_positions: positions without.
        labels: entries that hold a concept.
        distinct_concepts: concepts that occur at least once.
        tokens_per_second: of the run that finished the labels, all its processes together; loading left out, but not
            on a Ray cluster. 0 if it only completed what others labelled.
    """

    labelled_positions: int
    masked_positions: int
    labels: int
    distinct_concepts: int
    tokens_per_second: float


class LabelManifest(Record):
    """What the labels are of and how they were made.

    `fingerprint` covers everything but names, speed, versions and `agreement_with_float32`, the share of positions
    whose label sets equalled the float32 teacher's on a sample (None where the teacher ran in float32).
    """

    format_version: int
    cocomix_version: str
    data_fingerprint: str
    tokenizer_fingerprint: str
    block_size: int
    teacher: TeacherRecord
    dictionary: DictionaryRecord
    layer: int
    settings: LabelSettings
    num_concepts: int
    splits: dict[str, tuple[LabelShard, ...]]
    agreement_with_float32: float | None = None
    statistics: LabelStatistics
    fingerprint: str

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determined the labels, as JSON."""
        shards = {split: [[shard.name, shard.blocks] for shard in members] for split, members in self.splits.items()}
        return {
            "format_version": self.format_version,
            "data_fingerprint": self.data_fingerprint,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "block_size": self.block_size,
            "teacher": self.teacher.fingerprint,
            "dictionary": self.dictionary.fingerprint,
            "layer": self.layer,
            "settings": self.settings.model_dump(mode="json", exclude_unset=True),  # as it was when they were made
            "shards": shards,
        }


def id_storage(num_concepts: int) -> tuple[np.dtype[Any], int]:
    """How concept ids are stored: (dtype, value that stands for no label)."""
    if num_concepts <= 65_535:
        return np.dtype(np.uint16), 65_535
    return np.dtype(np.int32), -1


def read_label_manifest(path: Path) -> LabelManifest:
    """The manifest of a label folder, whether or not its shards are there.

    Raises:
        CoCoMixError: it is of another format version, or damaged.
    """
    raw = read_json(path / "manifest.json")
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise CoCoMixError(
            f"{path} has label format {version}, but this version of cocomix reads format {FORMAT_VERSION}; "
            "label again."
        )
    try:
        return LabelManifest.model_validate(raw)
    except ValidationError as error:
        raise CoCoMixError(
            f"{path / 'manifest.json'} is damaged ({error.error_count()} fields); label again."
        ) from error


class LabelBlocks(Dataset[dict[str, Tensor]]):
    """The labels of one split, block by block, memory-mapped. Picklable: loader workers map the files themselves.

    Args:
        folder: the label folder.
        shards: of this split, in order.
        manifest: of the folder.
    """

    def __init__(self, folder: Path, shards: tuple[LabelShard, ...], manifest: LabelManifest) -> None:
        self.block_size = manifest.block_size
        self.k = manifest.settings.k
        paths = [folder / f"{shard.name}.arrow" for shard in shards]
        self._stored = ShardColumns(paths, [shard.blocks for shard in shards], [shard.sha256 for shard in shards])
        self._ignored = id_storage(manifest.num_concepts)[1]

    def __len__(self) -> int:
        return len(self._stored)

    def fetch(self) -> None:
        """Have all labels on this machine, if they are those of a remote folder."""
        self._stored.fetch()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """`concept_labels`: int64 [block_size, k], −100 where there is no label, aligned with the block's tokens."""
        stored = self._row(index, "concept_ids").astype(np.int64)
        ids = torch.from_numpy(stored.reshape(self.block_size, self.k))
        return {"concept_labels": ids.masked_fill_(ids == self._ignored, IGNORE)}

    def scores(self, index: int) -> Tensor:
        """Scores of one block, float32 [block_size, k]: gradient of the summed loss in nats times activation."""
        stored = self._row(index, "concept_scores").astype(np.float32)
        return torch.from_numpy(stored.reshape(self.block_size, self.k))

    def _row(self, index: int, column: str) -> NDArray[Any]:
        return self._stored.row(index, column, self.block_size * self.k)


class ConceptLabelStore:
    """A finished label folder. Open it with `ConceptLabelStore.open`."""

    def __init__(self, path: Path, manifest: LabelManifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path | str) -> "ConceptLabelStore":
        """Open a label folder and check that its files are there.

        Args:
            path: the folder, or its URL: then this is a local copy, whose shards are fetched when they are read.

        Raises:
            CoCoMixError: not a label folder, unfinished, of another format version, or a shard is missing.
        """
        path = local_folder(path, "manifest.json")
        if not (path / "manifest.json").is_file():
            if partial_path(path).is_dir():
                raise CoCoMixError(
                    f"the labels in {path} are not finished; run the same `cocomix label` again to continue."
                )
            raise CoCoMixError(f"{path} holds no concept labels (no manifest.json); make them with `cocomix label`.")
        manifest = read_label_manifest(path)
        for shard in (shard for shards in manifest.splits.values() for shard in shards):
            if known_size(path / f"{shard.name}.arrow") is None:
                raise CoCoMixError(
                    f"{path} lacks its shard {shard.name}.arrow; run the same `cocomix label` again to make only that."
                )
        return cls(path, manifest)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything they are made of."""
        return self.manifest.fingerprint

    @property
    def num_concepts(self) -> int:
        """Number of concepts in the labels' dictionary."""
        return self.manifest.num_concepts

    def split(self, name: str) -> LabelBlocks:
        """The labels of one split, as a map-style data set.

        Raises:
            CoCoMixError: there is no such split.
        """
        if name not in self.manifest.splits:
            raise CoCoMixError(f"{self.path} has no split {name!r}, only {', '.join(self.manifest.splits)}.")
        return LabelBlocks(self.path, self.manifest.splits[name], self.manifest)

    def check(self, data_fingerprint: str, tokenizer_fingerprint: str, num_concepts: int) -> None:
        """Refuse labels that do not belong to the tokens, the tokenizer or the number of concepts they are used with.

        Raises:
            CoCoMixError: naming the first thing that differs.
        """
        if self.manifest.tokenizer_fingerprint != tokenizer_fingerprint:
            raise CoCoMixError(
                f"the labels in {self.path} were made with another tokenizer; label this data set again."
            )
        if self.manifest.data_fingerprint != data_fingerprint:
            raise CoCoMixError(f"the labels in {self.path} belong to other tokens; label this data set again.")
        if self.manifest.num_concepts != num_concepts:
            raise CoCoMixError(
                f"the labels in {self.path} name {self.manifest.num_concepts} concepts, but the model has "
                f"{num_concepts}; set num_concepts to {self.manifest.num_concepts}."
            )
