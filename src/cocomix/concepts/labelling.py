"""Writing the labels of a prepared data set, shard by shard (see `cocomix.concepts.labels` for the format).

A shard is written under a temporary name, flushed and renamed, and only then recorded. A run that was interrupted
continues after the last recorded shard, provided that teacher, dictionary, settings and tokens are the same.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from cocomix.concepts.attribution import IGNORED
from cocomix.concepts.hashing import file_sha256
from cocomix.concepts.labels import (
    FORMAT_VERSION,
    DictionaryRecord,
    LabelManifest,
    LabelSettings,
    LabelShard,
    LabelStatistics,
    TeacherRecord,
    id_storage,
)
from cocomix.concepts.teacher import ConceptTeacher
from cocomix.concepts.tokens import TokenShardLike
from cocomix.errors import CoCoMixError
from cocomix.output import fingerprint_json, partial_path, read_json, staged_directory, write_json
from cocomix.reporter import Reporter, SilentReporter

__all__ = ["write_labels"]

_PLAN = "plan.json"
_PROGRESS = "progress"


def write_labels(
    teacher: ConceptTeacher,
    splits: Mapping[str, Sequence[TokenShardLike]],
    output: Path,
    settings: LabelSettings | None = None,
    *,
    data_fingerprint: str,
    tokenizer_fingerprint: str,
    block_size: int,
    batch_tokens: int = 4096,
    reporter: Reporter | None = None,
) -> LabelManifest:
    """Label every block of a prepared data set.

    Args:
        teacher: model, dictionary and layer.
        splits: token shards by split, in order.
        output: folder to write; built as `output.partial` and renamed when whole.
        settings: how labels are chosen and stored.
        data_fingerprint: of the prepared data.
        tokenizer_fingerprint: of its tokenizer.
        block_size: tokens per block.
        batch_tokens: tokens per forward pass; memory, not results, depends on it.
        reporter: gets the progress in tokens.

    Returns:
        The manifest, also written to `output/manifest.json`.

    Raises:
        CoCoMixError: `output` exists; `output.partial` was begun with something else; a shard does not fit; the disk
            is full.
    """
    settings = settings or LabelSettings()
    reporter = reporter or SilentReporter()
    shards = {split: list(members) for split, members in splits.items()}
    identity = _identity(teacher, shards, settings, data_fingerprint, tokenizer_fingerprint, block_size)
    batch = max(1, batch_tokens // block_size)
    total = sum(shard.num_blocks for members in shards.values() for shard in members) * block_size
    with staged_directory(output, resume=True) as folder, reporter.progress("label", total, "tokens") as advance:
        _claim(folder, identity, output)
        started, fresh_tokens = time.perf_counter(), 0
        records: dict[str, list[dict[str, Any]]] = {}
        for split, members in shards.items():
            records[split] = []
            for shard in members:
                record = _finished(folder, shard.name)
                if record is None:
                    record = _write_shard(teacher, shard, folder, settings, batch, block_size, advance)
                    fresh_tokens += shard.num_blocks * block_size
                else:
                    advance(shard.num_blocks * block_size)
                records[split].append(record)
        seconds = time.perf_counter() - started
        manifest = _manifest(identity, records, fresh_tokens / seconds if seconds > 0 else 0.0, teacher, settings)
        shutil.rmtree(folder / _PROGRESS, ignore_errors=True)
        write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
        (folder / _PLAN).unlink()
    reporter.say(
        f"labelled {total:,} tokens with {manifest.statistics.distinct_concepts:,} of {manifest.num_concepts:,} "
        f"concepts in {output} ({manifest.statistics.tokens_per_second:,.0f} tokens/s)"
    )
    return manifest


def _identity(
    teacher: ConceptTeacher,
    shards: Mapping[str, Sequence[TokenShardLike]],
    settings: LabelSettings,
    data_fingerprint: str,
    tokenizer_fingerprint: str,
    block_size: int,
) -> dict[str, Any]:
    """Everything that determines the labels, as JSON."""
    return {
        "format_version": FORMAT_VERSION,
        "data_fingerprint": data_fingerprint,
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "block_size": block_size,
        "teacher": teacher.fingerprint(),
        "dictionary": teacher.dictionary.fingerprint(),
        "layer": teacher.layer,
        "settings": settings.model_dump(mode="json"),
        "shards": {split: [[shard.name, shard.num_blocks] for shard in members] for split, members in shards.items()},
    }


def _claim(folder: Path, identity: dict[str, Any], output: Path) -> None:
    """Record what the partial folder is of, or check that an interrupted run was of the same."""
    plan = folder / _PLAN
    if not plan.exists():
        if any(folder.iterdir()):
            raise CoCoMixError(f"{partial_path(output)} holds something else; remove it or choose another --output.")
        write_json(plan, identity)
        return
    found = read_json(plan)
    differing = [key for key, value in identity.items() if found.get(key) != value]
    if differing:
        raise CoCoMixError(
            f"{partial_path(output)} was begun with another {', '.join(differing)}; remove it or choose another "
            "--output."
        )


def _finished(folder: Path, name: str) -> dict[str, Any] | None:
    """The record of a shard that is whole on the disk, else None."""
    record, shard = folder / _PROGRESS / f"{name}.json", folder / f"{name}.arrow"
    if not record.exists() or not shard.exists():
        return None
    found: dict[str, Any] = read_json(record)
    return found if file_sha256(shard) == found["sha256"] else None


def _write_shard(
    teacher: ConceptTeacher,
    shard: TokenShardLike,
    folder: Path,
    settings: LabelSettings,
    batch: int,
    block_size: int,
    advance: Any,
) -> dict[str, Any]:
    """Label one shard, write it and record it."""
    tokens = shard.read()
    if tokens.shape != (shard.num_blocks, block_size):
        raise CoCoMixError(
            f"the token shard {shard.name} has shape {list(tokens.shape)}, not [{shard.num_blocks}, {block_size}]; "
            "prepare the data again."
        )
    if int(tokens.max(initial=0)) >= teacher.vocab_size:
        raise CoCoMixError(
            f"the token shard {shard.name} has token {int(tokens.max())} but the teacher knows {teacher.vocab_size} "
            "tokens; prepare the data with the teacher's tokenizer."
        )
    dtype, ignored = id_storage(teacher.n_concepts)
    ids = np.empty((shard.num_blocks, block_size * settings.k), dtype=dtype)
    scores = np.empty(ids.shape, dtype=settings.score_dtype)
    used = np.zeros(teacher.n_concepts, dtype=bool)
    labelled = 0
    for start, chosen_ids, chosen_scores in _label_blocks(teacher, tokens, settings, batch):
        present = chosen_ids != IGNORED
        used[chosen_ids[present].numpy()] = True
        labelled += int(present.any(dim=-1).sum())
        rows = slice(start, start + len(chosen_ids))
        ids[rows] = chosen_ids.masked_fill(~present, ignored).flatten(1).numpy()
        limit = float(np.finfo(scores.dtype).max)
        scores[rows] = chosen_scores.clamp(-limit, limit).flatten(1).numpy()
        advance(chosen_ids.shape[0] * block_size)
    path = folder / f"{shard.name}.arrow"
    _write_arrow(path, ids, scores)
    record = {
        "name": shard.name,
        "blocks": shard.num_blocks,
        "sha256": file_sha256(path),
        "labelled_positions": labelled,
        "labels": int((ids != ignored).sum()),
        "used": np.packbits(used).tobytes().hex(),
    }
    (folder / _PROGRESS / shard.name).parent.mkdir(parents=True, exist_ok=True)
    write_json(folder / _PROGRESS / f"{shard.name}.json", record)
    return record


def _label_blocks(
    teacher: ConceptTeacher, tokens: NDArray[Any], settings: LabelSettings, batch: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Label blocks in batches: (first row, ids, scores [batch, block_size, k] on the CPU)."""
    for start in range(0, len(tokens), batch):
        input_ids = torch.from_numpy(tokens[start : start + batch].astype(np.int64))
        labels = teacher.label(input_ids, k=settings.k, settings=settings, reduction="sum")
        yield start, labels.ids.cpu(), labels.scores.cpu()


def _write_arrow(path: Path, ids: NDArray[Any], scores: NDArray[Any]) -> None:
    """Write one shard under a temporary name, flush it and rename it."""
    columns = {"concept_ids": ids, "concept_scores": scores}
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1]) for values in columns.values()
    ]
    table = pa.RecordBatch.from_arrays(arrays, names=list(columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
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


def _manifest(
    identity: dict[str, Any],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    tokens_per_second: float,
    teacher: ConceptTeacher,
    settings: LabelSettings,
) -> LabelManifest:
    """Put together what the shards' records say."""
    every = [record for members in records.values() for record in members]
    used = np.zeros(-(-teacher.n_concepts // 8), dtype=np.uint8)
    for record in every:
        used |= np.frombuffer(bytes.fromhex(record["used"]), dtype=np.uint8)
    positions = sum(record["blocks"] for record in every) * identity["block_size"]
    labelled = sum(record["labelled_positions"] for record in every)
    splits = {
        split: tuple(
            LabelShard(name=record["name"], blocks=record["blocks"], sha256=record["sha256"]) for record in members
        )
        for split, members in records.items()
    }
    hashes = {split: [shard.sha256 for shard in members] for split, members in splits.items()}
    return LabelManifest(
        format_version=FORMAT_VERSION,
        cocomix_version=version("cocomix"),
        data_fingerprint=identity["data_fingerprint"],
        tokenizer_fingerprint=identity["tokenizer_fingerprint"],
        block_size=identity["block_size"],
        teacher=TeacherRecord(name=teacher.name, fingerprint=identity["teacher"], vocab_size=teacher.vocab_size),
        dictionary=DictionaryRecord(
            name=teacher.dictionary.name,
            fingerprint=identity["dictionary"],
            kind=teacher.dictionary.kind,
            num_concepts=teacher.n_concepts,
        ),
        layer=teacher.layer,
        settings=settings,
        num_concepts=teacher.n_concepts,
        splits=splits,
        statistics=LabelStatistics(
            labelled_positions=labelled,
            masked_positions=positions - labelled,
            labels=sum(record["labels"] for record in every),
            distinct_concepts=int(np.unpackbits(used).sum()),
            tokens_per_second=tokens_per_second,
        ),
        fingerprint=fingerprint_json({"identity": identity, "shards": hashes}),
    )
