"""Concept labels on disk, beside the tokens they belong to (see `cocomix.labelling.stored_arrays`).

    LABELS/
      manifest.json             `LabelsManifest`
      train-00000.ids.npy       [blocks, block_size, k] uint16 (up to 65,536 concepts) or uint32: best first
      train-00000.counts.npy    [blocks, block_size] uint8: labels of the position; the places after them hold 0
      train-00000.scores.npy    [blocks, block_size, k] float16 or float32, if scores are kept

Scores are what the labeller ranks by; for attribution, gradients of the *summed* next-token loss (nats) times the
activation, so that they do not depend on how blocks were batched. In memory, places without a label hold `IGNORE`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from cocomix.artifacts import Findings
from cocomix.concepts import determining
from cocomix.data import TRAIN, Tokens, id_dtype
from cocomix.labelling.label_content import MOST_POSITIONS, LabelContent, label_content
from cocomix.labelling.map_shards import Arrays, file_of
from cocomix.labelling.stored_arrays import Layout, StoredArrays, StoredBlocks, StoredManifest
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.runtime.section import Section

if TYPE_CHECKING:
    from torch import Tensor

    from cocomix.concepts import ConceptLabels, LabellerConfig

Scores = Literal["none", "float16", "float32"]
TABLES = "tables.safetensors"  # what a labeller learned in a first pass, if it had one
_MOST = 2**8 - 1  # labels per position, as counts are stored
_CHUNK = 2**12  # blocks that are looked at together


class LabelStatistics(Section):
    """Counts over all splits."""

    labelled_positions: int  # positions with at least one label
    masked_positions: int  # positions without
    labels: int  # of all positions together
    distinct_concepts: int  # concepts that occur at least once


class LabelsManifest(StoredManifest):
    """What the labels are of and how they were made."""

    labels: dict[str, Any]
    """Settings of the labeller, as in a recipe: `kind`, `k`, teacher and dictionary, if it has them."""
    labeller: dict[str, str]
    """Its fingerprint, part by part (`ConceptLabeller.fingerprint`)."""
    num_concepts: int
    """Ids are below it."""
    scores: Scores
    agreement_with_float32: float | None = None
    """Share of positions of a sample whose label sets equalled those of the same teacher in float32; None where it ran
    in float32, or there is no teacher."""
    score_kept_of_float32: float | None = None
    """Share of the best labels' score that the chosen ones have there; None likewise."""
    fit_flops: float = 0.0
    """FLOPs of the first pass, in which the labeller learned from a sample, by formula; 0 without one."""
    statistics: LabelStatistics
    content: LabelContent | None = None
    """How much of the labels the current token alone tells; None where there are too few to say."""

    @field_validator("labels")
    @classmethod
    def _kind_and_k_are_there(cls, labels: dict[str, Any]) -> dict[str, Any]:
        """What every kind has; a kind that is not installed here may have more than can be checked."""
        if not isinstance(labels.get("kind"), str) or type(k := labels.get("k")) is not int or not 1 <= k <= _MOST:
            raise ValueError(f"needs a kind and a k from 1 to {_MOST}")
        return labels

    @property
    def k(self) -> int:
        """Labels per position, at most."""
        return int(self.labels["k"])

    def contents(self) -> Any:
        of, made = super().contents(), determining(self.labeller)  # names and versions do not count
        return {"of": of, "k": self.k, "num_concepts": self.num_concepts, "labeller": made}

    def config(self) -> "LabellerConfig":
        """The settings of the labeller as its kind's class."""
        from cocomix.concepts import labeller_config

        return labeller_config(self.labels)

    @property
    def layouts(self) -> dict[str, Layout]:
        return label_layouts(self.block_size, self.k, self.num_concepts, self.scores)


def label_layouts(block_size: int, k: int, num_concepts: int, scores: Scores) -> dict[str, Layout]:
    """The arrays in which labels are stored."""
    every = (block_size, k)
    layouts = {"ids": Layout(id_dtype(num_concepts), every), "counts": Layout(np.dtype("u1"), (block_size,))}
    return layouts if scores == "none" else {**layouts, "scores": Layout(np.dtype(scores).newbyteorder("<"), every)}


class Labels(StoredArrays[LabelsManifest]):
    """A finished folder of labels."""

    kind = "labels"
    manifest_type = LabelsManifest
    made_by = "cocomix label"

    @property
    def num_concepts(self) -> int:
        """Label ids are below it."""
        return self.manifest.num_concepts

    @property
    def summary(self) -> str:
        counts = self.manifest.statistics
        positions = counts.labelled_positions + counts.masked_positions
        return f"labelled {positions:,} tokens with {counts.distinct_concepts:,} of {self.num_concepts:,} concepts"

    @property
    def warnings(self) -> list[str]:
        content, of_dictionary = self.manifest.content, "dictionary" in self.manifest.made_from
        return [] if content is None else content.warnings(of_dictionary=of_dictionary)

    @property
    def how_made(self) -> dict[str, Any]:
        return {"number of labels": self.manifest.k, **determining(self.manifest.labeller)}

    def split(self, name: str, *, scattered: bool = False) -> "LabelBlocks":
        return LabelBlocks(self, name, scattered=scattered)

    def tables(self) -> "dict[str, Tensor]":
        """What the labeller learned in a first pass, if it had one."""
        from safetensors.torch import load_file

        return load_file(self.file(TABLES)) if TABLES in self.manifest.files else {}

    def require_concepts(self, num_concepts: int) -> None:
        """Refuse a model with another number of concepts."""
        if self.num_concepts != num_concepts:
            raise CoCoMixError(
                f"the labels in {self.path} name {self.num_concepts} concepts, but the model has {num_concepts}; set "
                f"num_concepts to {self.num_concepts}."
            )

    @classmethod
    def counted(cls, folder: Path, manifest: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
        used = np.zeros(manifest["num_concepts"], dtype=bool)
        positions = labelled = labels = 0
        for file in (file["name"] for split in manifest["splits"].values() for file in split):
            ids, counts = (np.load(folder / f"{file}.{name}.npy", mmap_mode="r") for name in ("ids", "counts"))
            for chunk, present in _present(ids, counts):
                used[chunk[present]] = True
                labels += int(present.sum())
                labelled += int(present[..., 0].sum())
                positions += present[..., 0].size
        counts = {"labels": labels, "labelled_positions": labelled, "masked_positions": positions - labelled}
        sample = _sampled(folder, manifest, tokens)
        content = label_content(sample, num_concepts=manifest["num_concepts"])
        return {"statistics": {**counts, "distinct_concepts": int(used.sum())}, "content": content}

    def check(self, findings: Findings) -> None:
        from cocomix.concepts import ConceptDictionary, load_teacher, model_fingerprint

        super().check(findings)
        made, recorded = self.manifest.labels, self.manifest.made_from
        if "weights" in recorded and made.get("teacher"):
            name = str(made["teacher"]["model"])
            findings.source("teacher", name, recorded["weights"], lambda: model_fingerprint(load_teacher(name)))
        if "dictionary" in recorded and made.get("dictionary"):
            path = str(made["dictionary"]["path"])
            found = lambda: ConceptDictionary.from_sae_lens(path).fingerprint()  # noqa: E731
            findings.source("dictionary", path, recorded["dictionary"], found)

    def check_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for ids, present in _present(arrays["ids"], arrays["counts"]):
            if int(ids[present].max(initial=0)) >= self.num_concepts:
                raise CoCoMixError(f"{self.path} holds concepts that do not exist; {self._repair}.")
        if int(arrays["counts"].max(initial=0)) > self.manifest.k:
            raise CoCoMixError(f"{self.path} holds positions with more than {self.manifest.k} labels; {self._repair}.")


class LabelBlocks(StoredBlocks[LabelsManifest]):
    """The labels of one split, block by block."""

    read = ("ids", "counts")

    def __getitem__(self, index: int) -> dict[str, "Tensor"]:
        """`concept_labels`: int64 [block_size, k] of the block's tokens, `IGNORE` where there is no label."""
        import torch

        ids = self.row(index, "ids").astype(np.int64)
        ids[np.arange(ids.shape[-1]) >= self.row(index, "counts")[:, None]] = IGNORE
        return {"concept_labels": torch.from_numpy(ids)}

    def scores(self, index: int) -> "Tensor":
        """Scores of one block, float32 [block_size, k], 0 where there is no label.

        Raises:
            CoCoMixError: they were not kept.
        """
        import torch

        if self.store.manifest.scores == "none":
            raise CoCoMixError(f"the labels in {self.store.path} have no scores; label with --scores float16.")
        return torch.from_numpy(self.row(index, "scores").astype(np.float32))


def encode_labels(labels: "ConceptLabels", layouts: Mapping[str, Layout]) -> Arrays:
    """Labels [blocks, block_size, k] as they are stored."""
    ids = labels.ids.cpu().numpy()
    present = ids != IGNORE
    counts = present.sum(-1)
    assert bool((present == (np.arange(ids.shape[-1]) < counts[..., None])).all()), "labels come first, then none"
    arrays = {"ids": np.where(present, ids, 0), "counts": counts}
    if "scores" in layouts:
        assert labels.scores is not None
        limit = float(np.finfo(layouts["scores"].dtype).max)
        arrays["scores"] = labels.scores.clamp(-limit, limit).cpu().numpy()
    return {name: array.astype(layouts[name].dtype) for name, array in arrays.items()}


def _sampled(
    folder: Path, manifest: Mapping[str, Any], tokens: Tokens
) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Tokens, ids and counts of training blocks, spread evenly, of `MOST_POSITIONS` tokens at most."""
    files = manifest["splits"].get(TRAIN, [])
    block_size, total = tokens.manifest.block_size, sum(file["blocks"] for file in files)
    step = max(1, -(-total * block_size // MOST_POSITIONS))
    by_name = {file_of(shard): shard for shard in tokens.shards(TRAIN, 2**62)}
    for file in files:
        rows = by_name[file["name"]].read()
        ids, counts = (np.load(folder / f"{file['name']}.{name}.npy", mmap_mode="r") for name in ("ids", "counts"))
        for index in range(0, file["blocks"], step):
            yield rows[index], ids[index], counts[index]


def _present(ids: NDArray[Any], counts: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Ids [blocks, block_size, k] in chunks of blocks, and which of them are labels."""
    places = np.arange(ids.shape[-1])
    for start in range(0, len(ids), _CHUNK):
        rows = slice(start, start + _CHUNK)
        yield ids[rows], places < counts[rows][..., None]
