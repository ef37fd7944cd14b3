"""Writing the labels of a prepared data set, shard by shard (see `cocomix.concepts.labels` for the format).

A run that was interrupted continues with the shards that are not finished, in as many processes as it likes, provided
that teacher, dictionary, settings and tokens are the same.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cocomix.concepts.labels import (
    FORMAT_VERSION,
    DictionaryRecord,
    LabelManifest,
    LabelSettings,
    LabelShard,
    LabelStatistics,
    TeacherRecord,
    read_label_manifest,
)
from cocomix.concepts.repair import reopen_with_gaps
from cocomix.concepts.shards import (
    PROGRESS,
    Advance,
    ShardPlan,
    ShardWriter,
    finished_shard,
    label_shard,
    recorded_labels,
    shard_record,
)
from cocomix.concepts.teacher import ConceptTeacher, TeacherSource
from cocomix.concepts.tokens import TokenShardLike
from cocomix.concepts.workers import label_in_processes
from cocomix.errors import CoCoMixError
from cocomix.output import PLAN, claim_partial, fingerprint_json, staged_directory, write_json
from cocomix.reporter import Reporter, SilentReporter

__all__ = ["labels_identity", "write_labels"]


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
    workers: int = 1,
    source: TeacherSource | None = None,
    agreement: float | None = None,
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
        batch_tokens: tokens per forward pass; memory depends on it, and results no more than by rounding.
        workers: processes that label, at most one per unfinished shard. More than one are started afresh, so that a
            script that calls this needs `if __name__ == "__main__":`. With the same number of threads in each process
            the files are the same, byte for byte, whatever the number of processes.
        source: where the processes load the teacher from; needed for more than one.
        agreement: what `cocomix.concepts.agreement` measured, for the manifest.
        reporter: gets the progress in tokens.

    Returns:
        The manifest, also written to `output/manifest.json`.

    Raises:
        CoCoMixError: `output` exists and lacks no shard; `output.partial` was begun with something else; a shard does
            not fit; the disk is full; a worker process failed.
    """
    if workers < 1 or (workers > 1 and source is None):
        raise CoCoMixError(f"workers is {workers}; it must be at least 1, and more than one need a TeacherSource.")
    settings = settings or LabelSettings()
    reporter = reporter or SilentReporter()
    shards = {split: list(members) for split, members in splits.items()}
    identity = labels_identity(
        teacher,
        settings,
        data_fingerprint=data_fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint,
        block_size=block_size,
    )
    identity["shards"] = {split: [[shard.name, shard.num_blocks] for shard in shards[split]] for split in shards}
    every = [shard for members in shards.values() for shard in members]
    total = sum(shard.num_blocks for shard in every) * block_size
    if (output / "manifest.json").is_file():
        found = read_label_manifest(output)
        reopen_with_gaps(
            output,
            found.splits,
            made_of=found.identity,
            wanted=identity,
            record=lambda shard: recorded_labels(output, shard, found),
            reporter=reporter,
        )
    with staged_directory(output, resume=True) as folder, reporter.progress("label", total, "tokens") as advance:
        claim_partial(folder, identity, output)
        left = [shard for shard in every if not finished_shard(folder, shard.name)]
        fresh_tokens = sum(shard.num_blocks for shard in left) * block_size
        advance(total - fresh_tokens)
        plan = ShardPlan(folder, settings, block_size, max(1, batch_tokens // block_size), teacher.n_concepts)
        workers = min(workers, len(left))
        if source is not None and workers > 1:
            seconds = label_in_processes(
                source, (identity["teacher"], identity["dictionary"]), left, plan, workers, advance
            )
        else:
            seconds = _label_here(teacher, left, plan, advance)
        records = {split: [shard_record(folder, shard.name) for shard in members] for split, members in shards.items()}
        speed = fresh_tokens / seconds if seconds > 0 else 0.0
        manifest = _manifest(identity, records, speed, agreement, teacher, settings)
        shutil.rmtree(folder / PROGRESS, ignore_errors=True)
        write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
        (folder / PLAN).unlink()
    reporter.say(
        f"labelled {total:,} tokens with {manifest.statistics.distinct_concepts:,} of {manifest.num_concepts:,} "
        f"concepts in {output} ({manifest.statistics.tokens_per_second:,.0f} tokens/s)"
    )
    return manifest


def labels_identity(
    teacher: ConceptTeacher,
    settings: LabelSettings,
    *,
    data_fingerprint: str,
    tokenizer_fingerprint: str,
    block_size: int,
) -> dict[str, Any]:
    """Everything but the list of shards that determines the labels of a data set, as JSON."""
    return {
        "format_version": FORMAT_VERSION,
        "data_fingerprint": data_fingerprint,
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "block_size": block_size,
        "teacher": teacher.fingerprint(),
        "dictionary": teacher.dictionary.fingerprint(),
        "layer": teacher.layer,
        "settings": settings.model_dump(mode="json"),
    }


def _label_here(teacher: ConceptTeacher, shards: Sequence[TokenShardLike], plan: ShardPlan, advance: Advance) -> float:
    """Label and write shards in this process; seconds it took."""
    started = time.perf_counter()
    with ShardWriter(plan) as writer:
        for shard in shards:
            writer.write(shard.name, label_shard(teacher, shard, plan, advance))
    return time.perf_counter() - started


def _manifest(
    identity: dict[str, Any],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    tokens_per_second: float,
    agreement: float | None,
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
        agreement_with_float32=agreement,
        statistics=LabelStatistics(
            labelled_positions=labelled,
            masked_positions=positions - labelled,
            labels=sum(record["labels"] for record in every),
            distinct_concepts=int(np.unpackbits(used).sum()),
            tokens_per_second=tokens_per_second,
        ),
        fingerprint=fingerprint_json({"identity": identity, "shards": hashes}),
    )
