"""Completing a folder of labels in which every shard is finished."""

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cocomix.artifacts.output import PLAN, fingerprint_json, partial_path, read_json, staged_directory, write_json
from cocomix.artifacts.remote import shown
from cocomix.labelling.labels import (
    FORMAT_VERSION,
    DictionaryRecord,
    LabelManifest,
    LabelSettings,
    LabelShard,
    LabelStatistics,
    TeacherRecord,
    read_label_manifest,
)
from cocomix.labelling.shards import PROGRESS, finished_shard, shard_record
from cocomix.labelling.sharing import FINISHING
from cocomix.runtime.console import Reporter, SilentReporter
from cocomix.runtime.errors import CoCoMixError

__all__ = ["MADE_WITH", "announce_labels", "complete_labels", "discard_records", "finish_labels", "rename_completed"]

MADE_WITH = "made_with"
"""In the plan: what the manifest says that does not determine the labels."""


def finish_labels(output: Path, reporter: Reporter | None = None, *, tokens_per_second: float = 0.0) -> LabelManifest:
    """Complete a folder whose parts are all labelled: check every shard, write the manifest, rename.

    Args:
        output: the folder the parts were labelled into.
        reporter: told what was labelled.
        tokens_per_second: for the manifest.

    Returns:
        The manifest; of a folder that is complete already, its own.

    Raises:
        CoCoMixError: nothing was begun there; shards are missing or damaged.
    """
    folder = partial_path(output)
    if not folder.exists() and (output / "manifest.json").is_file():
        discard_records(output)
        return read_label_manifest(output)
    if (completed := rename_completed(output)) is not None:
        return completed
    if not (folder / PLAN).is_file():
        raise CoCoMixError(f"there is nothing to finish: {folder} holds no labels; begin with `cocomix label --shard`.")
    plan = read_json(folder / PLAN)
    if not isinstance(plan, dict) or not {MADE_WITH, "shards"} <= plan.keys():
        raise CoCoMixError(f"{folder} was not begun by `cocomix label`, or long ago; give that command again instead.")
    names = [name for members in plan["shards"].values() for name, _ in members]
    left = [name for name in names if not finished_shard(folder, name)]
    if left:
        some = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        raise CoCoMixError(
            f"{len(left)} of {len(names)} shards in {folder} are not labelled ({some}); run the parts that are "
            "missing again, or the same command without --shard and --finish."
        )
    with staged_directory(output, resume=True):
        manifest = complete_labels(folder, plan, tokens_per_second)
    discard_records(output)  # not before the rename: a job that labels a shard once more would make them again
    announce_labels(manifest, output, reporter or SilentReporter())
    return manifest


def rename_completed(output: Path) -> LabelManifest | None:
    """Rename a folder that a killed job had completed, and give its manifest; `None` where there is none."""
    folder = partial_path(output)
    if (folder / PLAN).exists() or not (folder / "manifest.json").is_file():
        return None
    manifest = read_label_manifest(folder)
    with staged_directory(output, resume=True):
        discard_records(folder)
    return manifest


def complete_labels(folder: Path, plan: Mapping[str, Any], tokens_per_second: float) -> LabelManifest:
    """Write the manifest of a folder in which every shard is finished."""
    records = {split: [shard_record(folder, name) for name, _ in members] for split, members in plan["shards"].items()}
    try:
        manifest = _manifest(plan, records, tokens_per_second)
    except (KeyError, TypeError, ValueError) as error:
        raise CoCoMixError(f"{folder / PLAN} or a record beside it is damaged; remove {folder}.") from error
    write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    (folder / PLAN).unlink()
    return manifest


def discard_records(folder: Path) -> None:
    """Remove what only the jobs that labelled a folder needed."""
    shutil.rmtree(folder / PROGRESS, ignore_errors=True)
    (folder / FINISHING).unlink(missing_ok=True)


def _manifest(
    plan: Mapping[str, Any], records: Mapping[str, Sequence[Mapping[str, Any]]], tokens_per_second: float
) -> LabelManifest:
    """Put together what the plan and the shards' records say."""
    every = [record for members in records.values() for record in members]
    made_with = plan[MADE_WITH]
    num_concepts = made_with["dictionary"]["num_concepts"]
    used = np.zeros(-(-num_concepts // 8), dtype=np.uint8)
    for record in every:
        used |= np.frombuffer(bytes.fromhex(record["used"]), dtype=np.uint8)
    positions = sum(record["blocks"] for record in every) * plan["block_size"]
    labelled = sum(record["labelled_positions"] for record in every)
    splits = {
        split: tuple(
            LabelShard(name=record["name"], blocks=record["blocks"], sha256=record["sha256"]) for record in members
        )
        for split, members in records.items()
    }
    hashes = {split: [shard.sha256 for shard in members] for split, members in splits.items()}
    identity = {key: value for key, value in plan.items() if key != MADE_WITH}
    return LabelManifest(
        format_version=FORMAT_VERSION,
        cocomix_version=version("cocomix"),
        data_fingerprint=plan["data_fingerprint"],
        tokenizer_fingerprint=plan["tokenizer_fingerprint"],
        block_size=plan["block_size"],
        teacher=TeacherRecord(fingerprint=plan["teacher"], **made_with["teacher"]),
        dictionary=DictionaryRecord(fingerprint=plan["dictionary"], **made_with["dictionary"]),
        layer=plan["layer"],
        settings=LabelSettings.model_validate(plan["settings"]),
        num_concepts=num_concepts,
        splits=splits,
        agreement_with_float32=made_with["agreement_with_float32"],
        statistics=LabelStatistics(
            labelled_positions=labelled,
            masked_positions=positions - labelled,
            labels=sum(record["labels"] for record in every),
            distinct_concepts=int(np.unpackbits(used).sum()),
            tokens_per_second=tokens_per_second,
        ),
        fingerprint=fingerprint_json({"identity": identity, "shards": hashes}),
    )


def announce_labels(manifest: LabelManifest, output: Path, reporter: Reporter) -> None:
    """Say how much was labelled, with how many concepts, how fast."""
    statistics = manifest.statistics
    positions = statistics.labelled_positions + statistics.masked_positions
    reporter.say(
        f"labelled {positions:,} tokens with {statistics.distinct_concepts:,} of {manifest.num_concepts:,} "
        f"concepts in {shown(output)} ({statistics.tokens_per_second:,.0f} tokens/s)"
    )
