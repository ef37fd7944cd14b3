"""Checks of what is stored in shards: tokens, labels, teacher probabilities."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cocomix.artifacts.hashing import file_sha256
from cocomix.artifacts.output import fingerprint_json, read_json
from cocomix.data import Tokens
from cocomix.integrity.findings import Findings
from cocomix.integrity.sources import check_dictionary_source, check_teacher_source
from cocomix.labelling.columns import ShardColumns
from cocomix.labelling.labels import LabelShard, id_storage, read_label_manifest
from cocomix.labelling.probabilities import read_probability_manifest
from cocomix.labelling.shards import PROGRESS, finished_shard
from cocomix.runtime.errors import CoCoMixError

__all__ = ["check_data", "check_labels", "check_probabilities", "check_unfinished_shards"]


def check_data(path: Path, checklist: Findings) -> None:
    """Tokens: all that `Tokens.verify` looks at."""
    for finding in Tokens.open(path).verify().found:
        checklist.note(
            finding.what, finding.detail, CoCoMixError(finding.detail) if finding.state == "broken" else None
        )


def check_labels(path: Path, checklist: Findings) -> None:
    """Labels: every shard, the fingerprint, and data, teacher and dictionary where they are near."""
    manifest = read_label_manifest(path)
    dtype, ignored = id_storage(manifest.num_concepts)
    width = manifest.block_size * manifest.settings.k
    for shard in (shard for shards in manifest.splits.values() for shard in shards):
        with checklist.check(shard.name, "hash, shape and range of its concepts", _again(path, shard, "label")):
            _check_file(path, shard, "label")
            for ids in _rows(path, shard, "concept_ids", width, dtype):
                if not bool(((ids < manifest.num_concepts) & (ids >= 0) | (ids == ignored)).all()):
                    raise CoCoMixError(f"{path / shard.name}.arrow holds concepts that do not exist; label again.")
    hashes = {split: [shard.sha256 for shard in shards] for split, shards in manifest.splits.items()}
    fingerprint = fingerprint_json({"identity": manifest.identity, "shards": hashes})
    checklist.equal("fingerprint", fingerprint, manifest.fingerprint, "all they were made of", "label again")
    _check_data_beside(path, manifest.data_fingerprint, checklist)
    check_teacher_source(manifest.teacher.name, manifest.teacher.fingerprint, checklist)
    check_dictionary_source(manifest.dictionary.name, manifest.dictionary.fingerprint, checklist)


def check_probabilities(path: Path, checklist: Findings) -> None:
    """Teacher probabilities: every shard, the fingerprint, and data and teacher where they are near."""
    manifest = read_probability_manifest(path)
    dtype = id_storage(manifest.vocab_size)[0]
    width = manifest.block_size * manifest.top_k
    for shard in (shard for shards in manifest.splits.values() for shard in shards):
        with checklist.check(shard.name, "hash, shape and range of its tokens", _again(path, shard, "distill")):
            _check_file(path, shard, "distill")
            for ids in _rows(path, shard, "teacher_ids", width, dtype):
                if int(ids.max(initial=0)) >= manifest.vocab_size:
                    raise CoCoMixError(f"{path / shard.name}.arrow holds tokens that do not exist; distill again.")
    hashes = {split: [shard.sha256 for shard in shards] for split, shards in manifest.splits.items()}
    fingerprint = fingerprint_json({"identity": manifest.identity, "shards": hashes})
    checklist.equal("fingerprint", fingerprint, manifest.fingerprint, "all they were made of", "distill again")
    _check_data_beside(path, manifest.data_fingerprint, checklist)
    check_teacher_source(manifest.teacher.name, manifest.teacher.fingerprint, checklist)


def check_unfinished_shards(path: Path, checklist: Findings) -> None:
    """A partial folder: the shards that are recorded as finished."""
    for record in sorted((path / PROGRESS).rglob("*.json")):
        name = str(record.relative_to(path / PROGRESS).with_suffix(""))
        with checklist.check(name, "its hash", "run the same command again, which makes it again"):
            if not finished_shard(path, name):
                raise CoCoMixError(
                    f"the shard {path / name}.arrow is damaged; run the same command again, which makes it again."
                )
    checklist.skip("the rest", "not finished; run the same command again to go on")


def _again(path: Path, shard: LabelShard, verb: str) -> str:
    return f"delete {path / shard.name}.arrow and run the same `cocomix {verb}` again to make only that"


def _check_file(path: Path, shard: LabelShard, verb: str) -> None:
    file = path / f"{shard.name}.arrow"
    if not file.is_file():
        raise CoCoMixError(f"{file} is missing; run the same `cocomix {verb}` again to make only that.")
    if file_sha256(file) != shard.sha256:
        raise CoCoMixError(f"{file} has changed since it was written; {_again(path, shard, verb)}.")


def _rows(path: Path, shard: LabelShard, column: str, width: int, dtype: np.dtype[Any]) -> list[NDArray[Any]]:
    """A column's rows, once their number, width and type are seen to be right."""
    file = path / f"{shard.name}.arrow"
    stored = ShardColumns([file], [shard.blocks], [shard.sha256])
    rows = [stored.row(index, column, width) for index in range(shard.blocks)]
    if any(row.shape != (width,) or row.dtype != dtype for row in rows):
        raise CoCoMixError(f"{file} does not hold [{shard.blocks}, {width}] {dtype} in {column}; make it again.")
    return rows


def _is_tokens(folder: Path) -> bool:
    manifest = folder / "manifest.json"
    return manifest.is_file() and read_json(manifest).get("kind") == Tokens.kind


def _check_data_beside(path: Path, fingerprint: str, checklist: Findings) -> None:
    """The data, where the folder lies within it (as `cocomix label` puts it by default)."""
    parent = path.resolve().parent
    if not _is_tokens(parent):
        checklist.skip("data", "the folder is not within its data; training compares the fingerprints")
        return
    with checklist.check("data", f"fingerprint of {parent}", "prepare it again"):
        if Tokens.open(parent).manifest.fingerprint != fingerprint:
            raise CoCoMixError(f"{path} is of other tokens than {parent} holds; make it again for this data.")
