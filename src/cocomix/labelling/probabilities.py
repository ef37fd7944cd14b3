"""A teacher's next-token distributions on disk, for knowledge distillation without running the teacher again.

    FOLDER/
      manifest.json      what they are of (`ProbabilityManifest`)
      train/00000.arrow  same shards and row order as the tokens; one row is one block, with the columns
                           teacher_ids        block_size · K token ids, the likeliest first: uint16, or int32 from
                                              65,536 tokens on
                           teacher_log_probs  block_size · K log-probabilities: float16

Only the K largest probabilities are kept (our choice: at K = 64, 256 bytes per token). A run that was interrupted goes
on with the shards that are not finished.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from cocomix.artifacts.hashing import file_sha256
from cocomix.artifacts.output import PLAN, claim_partial, fingerprint_json, read_json, staged_directory, write_json
from cocomix.artifacts.remote import known_size, local_folder, shown
from cocomix.concepts.decoder import FrozenDecoder
from cocomix.concepts.fingerprints import model_fingerprint
from cocomix.concepts.tokens import TokenShardLike
from cocomix.labelling.columns import ShardColumns
from cocomix.labelling.labels import LabelShard, Record, TeacherRecord, id_storage
from cocomix.labelling.repair import reopen_with_gaps
from cocomix.labelling.shards import (
    PROGRESS,
    checked_tokens,
    finished_shard,
    shard_record,
    write_columns,
    write_record,
)
from cocomix.runtime.console import Reporter, SilentReporter
from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "ProbabilityDtype",
    "ProbabilityManifest",
    "TeacherProbabilities",
    "read_probability_manifest",
    "top_probabilities",
    "write_probabilities",
]

_FORMAT_VERSION = 1

ProbabilityDtype = Literal["float32", "bfloat16"]


class ProbabilityManifest(Record):
    """What stored distributions are of; `fingerprint` covers everything but the teacher's name, speed and versions.

    `vocab_size` is the tokenizer's: the distributions are over that many tokens. `dtype` is what the teacher ran in.
    """

    kind: Literal["teacher_probabilities"] = "teacher_probabilities"
    format_version: int
    cocomix_version: str
    data_fingerprint: str
    tokenizer_fingerprint: str
    block_size: int
    teacher: TeacherRecord
    vocab_size: int
    top_k: int
    dtype: ProbabilityDtype
    splits: dict[str, tuple[LabelShard, ...]]
    tokens_per_second: float
    fingerprint: str

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determined the distributions, as JSON."""
        return {
            "format_version": self.format_version,
            "data_fingerprint": self.data_fingerprint,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "block_size": self.block_size,
            "teacher": self.teacher.fingerprint,
            "vocab_size": self.vocab_size,
            "top_k": self.top_k,
            "dtype": self.dtype,
        }


@torch.no_grad()
def top_probabilities(
    decoder: FrozenDecoder, input_ids: Tensor, top_k: int, vocab_size: int, dtype: ProbabilityDtype = "float32"
) -> tuple[Tensor, Tensor]:
    """The K likeliest next tokens at every position and their log-probabilities among the first `vocab_size` tokens.

    Args:
        decoder: the teacher.
        input_ids: int64 [batch, seq].
        top_k: K.
        vocab_size: of the tokenizer; a head padded beyond it is cut.
        dtype: what the teacher runs in; log-probabilities are taken in float32.

    Returns:
        int64 and float32, [batch, seq, K] each, on the CPU, the likeliest first.
    """
    states, head = decoder.predictions(input_ids.to(decoder.device), dtype=getattr(torch, dtype))
    ids, log_probs = [], []
    for row in states:  # logits of one row at a time
        if head is not None:
            row = F.linear(row, head.weight.to(row.dtype), None if head.bias is None else head.bias.to(row.dtype))
        best = row[:, :vocab_size].log_softmax(-1, dtype=torch.float32).topk(top_k, dim=-1)
        ids.append(best.indices.cpu())
        log_probs.append(best.values.cpu())
    return torch.stack(ids), torch.stack(log_probs)


def write_probabilities(
    decoder: FrozenDecoder,
    splits: Mapping[str, Sequence[TokenShardLike]],
    output: Path,
    *,
    teacher_name: str,
    top_k: int,
    vocab_size: int,
    data_fingerprint: str,
    tokenizer_fingerprint: str,
    block_size: int,
    dtype: ProbabilityDtype = "float32",
    batch_tokens: int = 4096,
    reporter: Reporter | None = None,
) -> ProbabilityManifest:
    """Store a teacher's next-token distributions on every block of a prepared data set.

    Args:
        decoder: the teacher.
        splits: token shards by split, in order.
        output: folder to write; built as `output.partial` and renamed when whole.
        teacher_name: where the teacher came from.
        top_k: probabilities kept per position; with `vocab_size`, the whole distribution.
        vocab_size: of the tokenizer.
        data_fingerprint: of the prepared data.
        tokenizer_fingerprint: of its tokenizer.
        block_size: tokens per block.
        dtype: what the teacher runs in.
        batch_tokens: tokens per forward pass.
        reporter: gets the progress in tokens.

    Returns:
        The manifest, also written to `output/manifest.json`.

    Raises:
        CoCoMixError: `top_k` is out of range; `output` exists; `output.partial` was begun with something else; a shard
            does not fit; the disk is full.
    """
    if not 1 <= top_k <= vocab_size:
        raise CoCoMixError(f"top_k={top_k} must be between 1 and the {vocab_size} tokens of the vocabulary.")
    reporter = reporter or SilentReporter()
    identity: dict[str, Any] = {
        "format_version": _FORMAT_VERSION,
        "data_fingerprint": data_fingerprint,
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "block_size": block_size,
        "teacher": model_fingerprint(decoder.model),
        "vocab_size": vocab_size,
        "top_k": top_k,
        "dtype": dtype,
    }
    every = [shard for members in splits.values() for shard in members]
    total = sum(shard.num_blocks for shard in every) * block_size
    if (output / "manifest.json").is_file():
        found = read_probability_manifest(output)
        reopen_with_gaps(
            output,
            found.splits,
            made_of=found.identity,
            wanted=identity,
            record=lambda shard: shard.model_dump(),
            reporter=reporter,
        )
    started, fresh = time.perf_counter(), 0
    with staged_directory(output, resume=True) as folder, reporter.progress("distill", total, "tokens") as advance:
        claim_partial(folder, identity, output)
        for shard in every:
            if finished_shard(folder, shard.name):
                advance(shard.num_blocks * block_size)
                continue
            _write_shard(decoder, shard, folder, identity, max(1, batch_tokens // block_size))
            advance(shard.num_blocks * block_size)
            fresh += shard.num_blocks * block_size
        records = {
            split: tuple(LabelShard.model_validate(shard_record(folder, shard.name)) for shard in members)
            for split, members in splits.items()
        }
        hashes = {split: [shard.sha256 for shard in members] for split, members in records.items()}
        shared = {name: value for name, value in identity.items() if name != "teacher"}
        manifest = ProbabilityManifest(
            **shared,
            cocomix_version=version("cocomix"),
            teacher=TeacherRecord(name=teacher_name, fingerprint=identity["teacher"], vocab_size=decoder.vocab_size),
            splits=records,
            tokens_per_second=fresh / max(time.perf_counter() - started, 1e-9),
            fingerprint=fingerprint_json({"identity": identity, "shards": hashes}),
        )
        shutil.rmtree(folder / PROGRESS, ignore_errors=True)
        write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
        (folder / PLAN).unlink()
    reporter.say(f"stored the {top_k:,} likeliest next tokens of {total:,} positions in {shown(output)}")
    return manifest


def _write_shard(
    decoder: FrozenDecoder, shard: TokenShardLike, folder: Path, identity: Mapping[str, Any], batch: int
) -> None:
    """Compute, write and record one shard."""
    tokens = checked_tokens(shard, identity["block_size"], decoder.vocab_size)
    dtype = id_storage(identity["vocab_size"])[0]
    parts = [
        top_probabilities(
            decoder,
            torch.from_numpy(tokens[start : start + batch].astype(np.int64)),
            identity["top_k"],
            identity["vocab_size"],
            identity["dtype"],
        )
        for start in range(0, len(tokens), batch)
    ]
    columns = {
        "teacher_ids": torch.cat([ids for ids, _ in parts]).flatten(1).numpy().astype(dtype),
        "teacher_log_probs": torch.cat([log_probs for _, log_probs in parts]).flatten(1).numpy().astype(np.float16),
    }
    path = folder / f"{shard.name}.arrow"
    write_columns(path, columns)
    record = LabelShard(name=shard.name, blocks=len(tokens), sha256=file_sha256(path))
    write_record(folder, shard.name, record.model_dump(mode="json"))


def read_probability_manifest(path: Path) -> ProbabilityManifest:
    """The manifest of a folder, whether or not its shards are there.

    Raises:
        CoCoMixError: it is something else, of another format version, or damaged.
    """
    file = path / "manifest.json"
    raw = read_json(file)
    if not isinstance(raw, dict) or raw.get("kind") != "teacher_probabilities":
        raise CoCoMixError(f"{path} holds something else than teacher probabilities; see `cocomix distill`.")
    if raw.get("format_version") != _FORMAT_VERSION:
        raise CoCoMixError(
            f"{path} has format {raw.get('format_version')}, but this version of cocomix reads format "
            f"{_FORMAT_VERSION}; run `cocomix distill` again."
        )
    try:
        return ProbabilityManifest.model_validate(raw)
    except ValidationError as error:
        raise CoCoMixError(f"{file} is damaged ({error.error_count()} fields); run `cocomix distill` again.") from error


class ProbabilityBlocks(Dataset[dict[str, Tensor]]):
    """The distributions of one split, block by block, memory-mapped."""

    def __init__(self, folder: Path, shards: tuple[LabelShard, ...], manifest: ProbabilityManifest) -> None:
        self._shape = (manifest.block_size, manifest.top_k)
        paths = [folder / f"{shard.name}.arrow" for shard in shards]
        self._stored = ShardColumns(paths, [shard.blocks for shard in shards], [shard.sha256 for shard in shards])

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """`teacher_ids` int64 and `teacher_log_probs` float16, [block_size, K] each."""
        width = self._shape[0] * self._shape[1]
        ids = self._stored.row(index, "teacher_ids", width).astype(np.int64)
        log_probs = self._stored.row(index, "teacher_log_probs", width).copy()
        return {
            "teacher_ids": torch.from_numpy(ids.reshape(self._shape)),
            "teacher_log_probs": torch.from_numpy(log_probs.reshape(self._shape)),
        }


class TeacherProbabilities:
    """A finished folder of distributions. Open it with `TeacherProbabilities.open`."""

    def __init__(self, path: Path, manifest: ProbabilityManifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path | str) -> "TeacherProbabilities":
        """Open a folder that `cocomix distill` wrote.

        Args:
            path: the folder, or its URL: then this is a local copy, whose shards are fetched when they are read.

        Raises:
            CoCoMixError: it is no such folder, unfinished, damaged, or of another format version.
        """
        path = local_folder(path, "manifest.json")
        if not (path / "manifest.json").is_file():
            raise CoCoMixError(f"{path} holds no finished teacher probabilities; make them with `cocomix distill`.")
        manifest = read_probability_manifest(path)
        for shard in (shard for shards in manifest.splits.values() for shard in shards):
            if known_size(path / f"{shard.name}.arrow") is None:
                raise CoCoMixError(
                    f"{path} lacks its shard {shard.name}.arrow; run the same `cocomix distill` again to make only it."
                )
        return cls(path, manifest)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything they are made of."""
        return self.manifest.fingerprint

    @property
    def complete(self) -> bool:
        """Whether the whole distribution is stored."""
        return self.manifest.top_k == self.manifest.vocab_size

    def split(self, name: str) -> ProbabilityBlocks:
        """The distributions of one split of the data."""
        return ProbabilityBlocks(self.path, self.manifest.splits[name], self.manifest)

    def check(self, data_fingerprint: str, tokenizer_fingerprint: str) -> None:
        """Refuse distributions of other tokens or of another vocabulary.

        Raises:
            CoCoMixError: naming what differs.
        """
        if self.manifest.tokenizer_fingerprint != tokenizer_fingerprint:
            raise CoCoMixError(
                f"the teacher probabilities in {self.path} are of another vocabulary; distill this data set again."
            )
        if self.manifest.data_fingerprint != data_fingerprint:
            raise CoCoMixError(
                f"the teacher probabilities in {self.path} belong to other tokens; distill this data set again."
            )
