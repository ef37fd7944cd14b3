"""One shard of labels: computed on the device, then encoded, hashed and written by a background thread.

A shard is written under a temporary name, flushed and renamed, and only then recorded in `progress/`, so that a stop at
any moment leaves finished shards and nothing that looks like one.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cocomix.artifacts.hashing import file_sha256
from cocomix.artifacts.output import aside_path, read_json, write_json
from cocomix.concepts.labeller import IGNORE, ConceptLabels
from cocomix.concepts.teacher import ConceptTeacher
from cocomix.concepts.tokens import TokenShardLike
from cocomix.labelling.columns import ShardColumns
from cocomix.labelling.labels import LabelManifest, LabelSettings, LabelShard, id_storage
from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "PROGRESS",
    "Advance",
    "EncodedShard",
    "ShardPlan",
    "ShardWriter",
    "checked_tokens",
    "encode_shard",
    "finished_shard",
    "is_recorded",
    "label_shard",
    "recorded_labels",
    "shard_record",
    "store_encoded",
    "store_shard",
    "write_columns",
    "write_record",
]

PROGRESS = "progress"
"""Folder of the records of finished shards, within the partial folder."""

Advance = Callable[[float], None]


@dataclass(frozen=True)
class ShardPlan:
    """What every shard of a data set is labelled with; sent to worker processes.

    Attributes:
        folder: the partial folder.
        settings: how labels are chosen and stored.
        block_size: tokens per block.
        batch: blocks per forward pass.
        n_concepts: of the dictionary.
    """

    folder: Path
    settings: LabelSettings
    block_size: int
    batch: int
    n_concepts: int


def shard_record(folder: Path, name: str) -> dict[str, Any]:
    """The record of a finished shard."""
    record: dict[str, Any] = read_json(folder / PROGRESS / f"{name}.json")
    return record


def is_recorded(folder: Path, name: str) -> bool:
    """Whether a shard is recorded as finished; its file is not looked at."""
    return (folder / PROGRESS / f"{name}.json").is_file()


def finished_shard(folder: Path, name: str) -> bool:
    """Whether a shard is recorded and its file is as it was written (it is read and hashed)."""
    path = folder / f"{name}.arrow"
    if not is_recorded(folder, name) or not path.exists():
        return False
    return bool(file_sha256(path) == shard_record(folder, name)["sha256"])


def label_shard(teacher: ConceptTeacher, shard: TokenShardLike, plan: ShardPlan, advance: Advance) -> ConceptLabels:
    """Labels of a whole shard.

    Args:
        teacher: model, dictionary and layer.
        shard: token blocks.
        plan: settings and sizes.
        advance: called with the number of tokens done.

    Returns:
        int64 ids and float32 scores [blocks, block_size, k], on the CPU.

    Raises:
        CoCoMixError: the shard has another shape than its data set says, or tokens that the teacher does not know.
    """
    tokens = checked_tokens(shard, plan.block_size, teacher.vocab_size)
    shape = (shard.num_blocks, plan.block_size, plan.settings.k)
    ids, scores = torch.empty(shape, dtype=torch.int64), torch.empty(shape)
    labeller = plan.settings.labeller(teacher)
    for start in range(0, shard.num_blocks, plan.batch):
        rows = slice(start, start + plan.batch)
        labels = labeller.label(torch.from_numpy(tokens[rows].astype(np.int64)), k=plan.settings.k)
        assert labels.scores is not None
        ids[rows], scores[rows] = labels.ids, labels.scores
        advance(labels.ids.shape[0] * plan.block_size)
    return ConceptLabels(ids, scores)


def checked_tokens(shard: TokenShardLike, block_size: int, vocab_size: int) -> NDArray[Any]:
    """The tokens of a shard [blocks, block_size], for a teacher of `vocab_size` tokens; errors as in `label_shard`."""
    tokens = shard.read()
    if tokens.shape != (shard.num_blocks, block_size):
        raise CoCoMixError(
            f"the token shard {shard.name} has shape {list(tokens.shape)}, not [{shard.num_blocks}, "
            f"{block_size}]; prepare the data again."
        )
    if int(tokens.max(initial=0)) >= vocab_size:
        raise CoCoMixError(
            f"the token shard {shard.name} has token {int(tokens.max())} but the teacher knows {vocab_size} "
            "tokens; prepare the data with the teacher's tokenizer."
        )
    return tokens


class ShardWriter:
    """Writes labelled shards in a thread, one after the other, while the next is computed.

    At most one shard waits. What goes wrong in the thread is raised by the next `write`, or when the block ends.
    """

    def __init__(self, plan: ShardPlan) -> None:
        self.plan = plan
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="label-writer")
        self._waiting: Future[None] | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self._finish()

    def write(self, name: str, labels: ConceptLabels) -> None:
        """Have the labels of a shard written, after those given before."""
        self._finish()
        self._waiting = self._thread.submit(store_shard, self.plan, name, labels)

    def _finish(self) -> None:
        if self._waiting is not None:
            self._waiting.result()


def store_shard(plan: ShardPlan, name: str, labels: ConceptLabels) -> None:
    """Encode a shard's labels, write them and record the shard."""
    store_encoded(plan, name, encode_shard(plan, labels))


@dataclass(frozen=True)
class EncodedShard:
    """A shard's labels as they are stored.

    Attributes:
        columns: [blocks, block_size · k] each, in their stored types.
        tallies: what its record says beside name, blocks and hash.
    """

    columns: Mapping[str, NDArray[Any]]
    tallies: Mapping[str, Any]


def encode_shard(plan: ShardPlan, labels: ConceptLabels) -> EncodedShard:
    """Labels [blocks, block_size, k] in the form that is stored."""
    dtype, ignored = id_storage(plan.n_concepts)
    present = labels.ids != IGNORE
    ids = labels.ids.masked_fill(~present, ignored).flatten(1).numpy().astype(dtype)
    assert labels.scores is not None
    limit = float(np.finfo(plan.settings.score_dtype).max)
    scores = labels.scores.clamp(-limit, limit).flatten(1).numpy().astype(plan.settings.score_dtype)
    return EncodedShard({"concept_ids": ids, "concept_scores": scores}, _tallies(labels.ids.numpy(), plan.n_concepts))


def store_encoded(plan: ShardPlan, name: str, shard: EncodedShard) -> None:
    """Write a shard and record it."""
    path = plan.folder / f"{name}.arrow"
    write_columns(path, shard.columns)
    stored = LabelShard(name=name, blocks=len(shard.columns["concept_ids"]), sha256=file_sha256(path))
    write_record(plan.folder, name, {**stored.model_dump(), **shard.tallies})


def write_record(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Record a shard as finished."""
    path = folder / PROGRESS / f"{name}.json"
    for parent in (path.parent.parent, path.parent):
        parent.mkdir(exist_ok=True)  # but not `folder`: it is gone when another process has finished it
    write_json(path, dict(record), shared=True)


def recorded_labels(folder: Path, shard: LabelShard, manifest: LabelManifest) -> dict[str, Any]:
    """The record of a shard of a finished folder, made again; one that no file agrees with if the shard is damaged."""
    path = folder / f"{shard.name}.arrow"
    if file_sha256(path) != shard.sha256:
        return {"name": shard.name, "sha256": None}
    stored, width = ShardColumns([path], [shard.blocks], [shard.sha256]), manifest.block_size * manifest.settings.k
    rows = np.stack([stored.row(index, "concept_ids", width).astype(np.int64) for index in range(shard.blocks)])
    ids = np.where(rows == id_storage(manifest.num_concepts)[1], IGNORE, rows)
    tallies = _tallies(ids.reshape(*rows.shape[:1], -1, manifest.settings.k), manifest.num_concepts)
    return {**shard.model_dump(), **tallies}


def _tallies(ids: NDArray[np.int64], n_concepts: int) -> dict[str, Any]:
    """What the record of a shard with these ids [blocks, block_size, k] counts."""
    present = ids != IGNORE
    used = np.zeros(n_concepts, dtype=bool)
    used[ids[present]] = True
    return {
        "labelled_positions": int(present.any(axis=-1).sum()),
        "labels": int(present.sum()),
        "used": np.packbits(used).tobytes().hex(),
    }


def write_columns(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write one shard, columns [blocks, numbers], under a temporary name, flush it and rename it."""
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1]) for values in columns.values()
    ]
    table = pa.RecordBatch.from_arrays(arrays, names=list(columns))
    path.parent.mkdir(exist_ok=True)
    aside = aside_path(path)
    try:
        with aside.open("wb") as stream:
            with pa.ipc.new_file(stream, table.schema) as writer:
                writer.write_batch(table)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except OSError as error:
        raise CoCoMixError(
            f"cannot write {path}: {error.strerror or error}; make room and run the same command again to continue."
        ) from error
    finally:
        aside.unlink(missing_ok=True)
