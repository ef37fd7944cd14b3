"""Writing the labels of a prepared data set, shard by shard (see `cocomix.labelling.labels` for the format).

A run that was interrupted continues with the shards that are not finished, on as many processes or machines as it
likes, provided that teacher, dictionary, settings and tokens are the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.artifacts.output import claim_partial, partial_path, require_free, staged_directory
from cocomix.artifacts.remote import shown, url_of
from cocomix.concepts.teacher import ConceptTeacher, TeacherSource
from cocomix.concepts.tokens import TokenShardLike
from cocomix.labelling.engines import LabelEngine
from cocomix.labelling.finishing import (
    MADE_WITH,
    announce_labels,
    complete_labels,
    discard_records,
    finish_labels,
    rename_completed,
)
from cocomix.labelling.labels import FORMAT_VERSION, LabelManifest, LabelSettings, read_label_manifest
from cocomix.labelling.ray_engine import RaySettings
from cocomix.labelling.repair import reopen_with_gaps
from cocomix.labelling.shards import ShardPlan, finished_shard, is_recorded, recorded_labels
from cocomix.labelling.sharing import FINISHING, ShardPart, claim_finish
from cocomix.runtime.console import Advance, Reporter, SilentReporter
from cocomix.runtime.errors import CoCoMixError

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
    ray: RaySettings | None = None,
    part: ShardPart | None = None,
    agreement: float | None = None,
    reporter: Reporter | None = None,
) -> LabelManifest | None:
    """Label every block of a prepared data set, or one of several parts of its shards.

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
            the files are the same, byte for byte, whatever the number of processes. With `ray`, tasks at once.
        source: where the processes load the teacher from; needed for more than one, and for `ray`.
        ray: label on a Ray cluster.
        part: label only these shards, in a folder that other jobs label at the same time; see
            `cocomix.labelling.sharing`. A folder with gaps is not repaired then.
        agreement: what `cocomix.concepts.agreement` measured, for the manifest.
        reporter: gets the progress in tokens.

    Returns:
        The manifest, also written to `output/manifest.json`; `None` with `part` while shards are left to other parts.

    Raises:
        CoCoMixError: `output` exists and lacks no shard (with `part`: and was made otherwise); `output.partial` was
            begun with something else; a shard does not fit; the disk is full; a worker process failed; no Ray cluster
            can be joined.
    """
    reporter = reporter or SilentReporter()
    job = _job(teacher, splits, settings, data_fingerprint, tokenizer_fingerprint, block_size, batch_tokens, agreement)
    engine = LabelEngine(workers, source, ray)
    if part is not None:
        return _write_part(job, part, output, engine, reporter)
    return _write_whole(job, output, engine, reporter)


@dataclass(frozen=True)
class _Job:
    """What is to be labelled, and how.

    Attributes:
        teacher: model, dictionary and layer.
        shards: of all splits, in order.
        identity: everything that determines the labels.
        notes: what else the manifest says.
        settings: how labels are chosen and stored.
        batch: blocks per forward pass.
    """

    teacher: ConceptTeacher
    shards: list[TokenShardLike]
    identity: dict[str, Any]
    notes: dict[str, Any]
    settings: LabelSettings
    batch: int

    def tokens(self, shards: Sequence[TokenShardLike]) -> int:
        """How many there are in some shards."""
        return sum(shard.num_blocks for shard in shards) * int(self.identity["block_size"])

    def run(
        self,
        engine: LabelEngine,
        folder: Path,
        shards: Sequence[TokenShardLike],
        advance: Advance,
        reporter: Reporter,
    ) -> float:
        """Label those of the shards that are not finished; tokens per second, 0 where there were none."""
        left = [shard for shard in shards if not finished_shard(folder, shard.name)]
        advance(self.tokens(shards) - self.tokens(left))
        plan = ShardPlan(folder, self.settings, self.identity["block_size"], self.batch, self.teacher.n_concepts)
        seconds = engine.label(self.teacher, left, plan, advance, reporter)
        return self.tokens(left) / seconds if seconds > 0 else 0.0


def _write_whole(job: _Job, output: Path, engine: LabelEngine, reporter: Reporter) -> LabelManifest:
    """Label everything that is left, and complete the folder."""
    if (completed := rename_completed(output)) is not None:
        return _of_job(completed, output, job)
    if (output / "manifest.json").is_file():
        found = read_label_manifest(output)
        reopen_with_gaps(
            output,
            found.splits,
            made_of=found.identity,
            wanted=job.identity,
            record=lambda shard: recorded_labels(output, shard, found),
            reporter=reporter,
        )
    with (
        staged_directory(output, resume=True) as folder,
        reporter.progress("label", job.tokens(job.shards), "tokens") as advance,
    ):
        claim_partial(folder, job.identity, output, job.notes)
        speed = job.run(engine, folder, job.shards, advance, reporter)
        manifest = complete_labels(folder, {**job.identity, **job.notes}, speed)
        discard_records(folder)
    announce_labels(manifest, output, reporter)
    return manifest


def _write_part(
    job: _Job, part: ShardPart, output: Path, engine: LabelEngine, reporter: Reporter
) -> LabelManifest | None:
    """Label one part in a folder that others write to, and complete it if this was the last; else `None`."""
    if url_of(output) is not None:
        raise CoCoMixError(
            f"parts need a folder that all jobs share, and {shown(output)} is none; label into one and upload it with "
            "`cocomix push`."
        )
    if (whole := _finished(output, job)) is not None:
        return whole
    require_free(output)
    folder = partial_path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (whole := _finished(output, job)) is not None:  # since it was looked for
            folder.rmdir()
            return whole
        speed = _label_part(job, part, output, engine, reporter)
    except (CoCoMixError, OSError):
        completing = (folder / FINISHING).exists()
        if (whole := _finished(output, job)) is None and not completing:
            raise
        return whole  # others labelled this part, too, and completed the folder under its feet
    if speed is None:
        return _finished(output, job)
    return finish_labels(output, reporter, tokens_per_second=speed)


def _label_part(job: _Job, part: ShardPart, output: Path, engine: LabelEngine, reporter: Reporter) -> float | None:
    """Label one part; tokens per second if this job is the one that completes the folder, else `None`."""
    folder, mine = partial_path(output), part.of(job.shards)
    claim_partial(folder, job.identity, output, job.notes)
    with reporter.progress("label", job.tokens(mine), "tokens") as advance:
        speed = job.run(engine, folder, mine, advance, reporter)
    if _finished(output, job) is not None:
        return None
    there = [shard for shard in job.shards if is_recorded(folder, shard.name)]
    if len(there) < len(job.shards):
        reporter.say(f"part {part} is labelled; of all parts {len(there):,} of {len(job.shards):,} shards are")
        return None
    if not claim_finish(folder, part):
        reporter.say(f"part {part} is labelled; another job completes {output}, or --finish does if it was stopped")
        return None
    return speed


def _job(
    teacher: ConceptTeacher,
    splits: Mapping[str, Sequence[TokenShardLike]],
    settings: LabelSettings | None,
    data_fingerprint: str,
    tokenizer_fingerprint: str,
    block_size: int,
    batch_tokens: int,
    agreement: float | None,
) -> _Job:
    settings = settings or LabelSettings()
    identity = labels_identity(
        teacher,
        settings,
        data_fingerprint=data_fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint,
        block_size=block_size,
    )
    identity["shards"] = {
        split: [[shard.name, shard.num_blocks] for shard in members] for split, members in splits.items()
    }
    dictionary = teacher.dictionary
    made_with = {
        "teacher": {"name": teacher.name, "vocab_size": teacher.vocab_size},
        "dictionary": {"name": dictionary.name, "kind": dictionary.kind, "num_concepts": teacher.n_concepts},
        "agreement_with_float32": agreement,
    }
    every = [shard for members in splits.values() for shard in members]
    return _Job(teacher, every, identity, {MADE_WITH: made_with}, settings, max(1, batch_tokens // block_size))


def _finished(output: Path, job: _Job) -> LabelManifest | None:
    """The manifest of a folder that is complete; `None` where there is none yet.

    Raises:
        CoCoMixError: it was made otherwise.
    """
    if not (output / "manifest.json").is_file():
        return None
    return _of_job(read_label_manifest(output), output, job)


def _of_job(found: LabelManifest, output: Path, job: _Job) -> LabelManifest:
    """The manifest.

    Raises:
        CoCoMixError: it is of labels that were made otherwise.
    """
    differing = [key for key, value in job.identity.items() if found.identity.get(key) != value]
    if differing:
        raise CoCoMixError(
            f"{output} was made with another {', '.join(differing)}; remove it or choose another --output."
        )
    return found


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
