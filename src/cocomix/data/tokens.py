"""`Tokens`: a folder of packed token blocks with their tokenizer, as `cocomix prepare` writes it.

DATA/
  manifest.json          `TokensManifest`
  tokenizer/             as `save_pretrained` writes it
  train-00000.npy        flat uint16 or uint32 array, see `cocomix.data.token_blocks`; by default 256M tokens a file
  validation-00000.npy
  validation.hashes.npy  uint64: `DocumentHash` of every held-out document, sorted
"""

import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cocomix.artifacts import Artifact, Damaged, Findings, Manifest, fingerprint_json
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from cocomix.data.token_blocks import TokenBlocks, TokenShard

logger = logging.getLogger(__name__)

HELDOUT_HASHES = "validation.hashes.npy"


def id_dtype(count: int) -> np.dtype[Any]:
    """The type in which numbers below `count` are stored: uint16 up to 65,536, else uint32; little-endian."""
    return np.dtype("<u2") if count <= 2**16 else np.dtype("<u4")


class SourceMeta(Record):
    """What was read from one source."""

    name: str  # as the user gave it
    kind: str  # `files`, `hub`, `documentation` or `tokens`
    splits: tuple[str, ...]  # the splits its documents could go to
    documents: int  # documents taken
    bytes: int  # UTF-8 bytes of their text


class TokensFile(Record):
    """One file of blocks."""

    name: str
    """Within the folder: `train-00000.npy`."""
    blocks: int = Field(ge=1)
    """Blocks in it."""


class SplitMeta(Record):
    """What a split holds."""

    documents: int
    """Documents read into the split."""
    tokens: int
    """Tokens of these documents, each with its end-of-document token but without what blocks begin with; the last
    ones, fewer than fill a block, are not stored."""
    bytes: int
    """UTF-8 bytes of the documents' text."""
    blocks: int
    """Blocks stored."""
    files: tuple[TokensFile, ...]
    """The files, in order."""

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of text of one nat per token; `None` where the bytes are not known, as of imported tokens."""
        return self.tokens / (self.bytes * math.log(2.0)) if self.bytes > 0 else None

    @model_validator(mode="after")
    def _counts_agree(self) -> "SplitMeta":
        if self.blocks != sum(file.blocks for file in self.files):
            raise ValueError(f"{self.blocks} blocks are not those of the files together")
        return self


class TokensManifest(Manifest):
    """`manifest.json` of a `Tokens` folder."""

    tokenizer_fingerprint: str
    """See `cocomix.data.tokenizer_fingerprint`."""
    tokenizer_name: str
    """Where the tokenizer came from, as the user gave it, or how it was trained."""
    vocab_size: int = Field(ge=1)
    """Rows an embedding needs: the largest token number plus one."""
    eos_token_id: int
    """The token after every document."""
    bos_token_id: int | None = None
    """The token that every block begins with, before `block_size` − 1 tokens of the documents; `None` where blocks hold
    nothing but documents."""
    block_size: int = Field(ge=2)
    """Tokens per block."""
    seed: int
    """Seed of the split by document."""
    sources: tuple[SourceMeta, ...]
    """What was read."""
    splits: dict[Annotated[str, Field(pattern=r"^\w+$")], SplitMeta]
    """`train` and `validation`."""
    invalid_utf8: int
    """Characters put in for bytes that were not UTF-8."""

    @model_validator(mode="after")
    def _files_are_listed(self) -> "TokensManifest":
        for file in (file for split in self.splits.values() for file in split.files):
            if self.files and file.name not in self.files:
                raise ValueError(f"{file.name} is not among the files")
        return self

    def contents(self) -> Any:
        """Everything that determines the tokens: tokenizer, block size, what blocks begin with, and the blocks."""
        blocks = {name: [self.files[file.name].sha256 for file in split.files] for name, split in self.splits.items()}
        values = {"tokenizer": self.tokenizer_fingerprint, "block_size": self.block_size, "bos": self.bos_token_id}
        return {"kind": self.kind, "version": self.version, **values, "blocks": blocks}


class Tokens(Artifact[TokensManifest]):
    """Packed token blocks of one corpus, with their tokenizer."""

    kind = "tokens"
    version = 2
    manifest_type = TokensManifest
    made_by = "cocomix prepare"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored tokens, uint16 or uint32."""
        return id_dtype(self.manifest.vocab_size)

    def split(self, name: str, *, scattered: bool = False) -> "TokenBlocks":
        """The blocks of `train` or `validation`, `scattered` if they will be read here and there, not in order."""
        from cocomix.data.token_blocks import TokenBlocks  # imports PyTorch, which takes seconds

        return TokenBlocks(self._files(name), self._counts(name), self.manifest.block_size, scattered)

    def shards(self, split: str, blocks_per_shard: int) -> "list[TokenShard]":
        """A split cut into ranges of at most `blocks_per_shard` blocks, none of which crosses files."""
        from cocomix.data.token_blocks import TokenShard

        return [
            TokenShard(file, start, min(start + blocks_per_shard, file.blocks), self)
            for file in self._counts(split).files
            for start in range(0, file.blocks, blocks_per_shard)
        ]

    def _files(self, split: str) -> "list[tuple[Tokens, TokensFile]]":
        return [(self, file) for file in self._counts(split).files]

    def _counts(self, split: str) -> SplitMeta:
        if split not in self.manifest.splits:
            raise CoCoMixError(f"{self.path} has no split {split!r}; it has {', '.join(self.manifest.splits)}.")
        return self.manifest.splits[split]

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Load the tokenizer the blocks were made with; its files are checked."""
        from cocomix.runtime.hub import load_tokenizer

        for name in self.manifest.files:
            if name.startswith("tokenizer/"):
                self.file(name)
        return load_tokenizer(str(self.path / "tokenizer"))

    def heldout_hashes(self) -> NDArray[np.uint64]:
        """`DocumentHash` of every held-out document, sorted; empty where they are not known (token files)."""
        if HELDOUT_HASHES not in self.manifest.files:
            return np.empty(0, dtype="<u8")
        hashes: NDArray[np.uint64] = np.load(self.file(HELDOUT_HASHES), allow_pickle=False)
        return hashes

    def check(self, findings: Findings) -> None:
        """Look whether the blocks hold the tokenizer's tokens and begin as the manifest says, and at the tokenizer."""

        def look(file: TokensFile) -> None:
            with findings.check(file.name, "shape, range of its tokens, beginning of its blocks", self._repair):
                self._check_blocks(file)

        start = len(findings.found)
        with ThreadPoolExecutor() as threads:  # NumPy lets other threads run
            list(threads.map(look, [file for split in self.manifest.splits.values() for file in split.files]))
        findings.found[start:] = sorted(findings.found[start:], key=lambda finding: finding.what)
        with findings.check("tokenizer", "its fingerprint", self._repair):
            from cocomix.data.tokenizer import tokenizer_fingerprint

            if tokenizer_fingerprint(self.tokenizer()) != self.manifest.tokenizer_fingerprint:
                raise CoCoMixError(f"{self.path / 'tokenizer'} is not the blocks' tokenizer; {self._repair}.")

    def _check_blocks(self, file: TokensFile) -> None:
        from cocomix.data.token_blocks import mapped_blocks

        blocks = mapped_blocks(self, file)
        if int(blocks.max()) >= self.manifest.vocab_size:
            raise Damaged(f"{self.path / file.name} holds tokens beyond the vocabulary; {self._repair}.", file.name)
        if self.manifest.bos_token_id is not None and bool((blocks[:, 0] != self.manifest.bos_token_id).any()):
            raise Damaged(
                f"{self.path / file.name} has blocks that do not begin with token {self.manifest.bos_token_id}, as the "
                f"manifest says; {self._repair}.",
                file.name,
            )


def warn_of_overlap(training: Iterable[Tokens], validation: Iterable[Tokens]) -> None:
    """Warn, once, where documents may be in the training tokens of one folder and held out in another.

    Within a folder no document is both, nor between folders whose splits follow the same rule: which split a document
    is in depends on its content, the seed and the share alone.
    """
    validation = list(validation)
    pairs = [
        (one, other)
        for one in training
        for other in validation
        if one.manifest.fingerprint != other.manifest.fingerprint and (_rule(one) is None or _rule(one) != _rule(other))
    ]
    if not pairs:
        return
    found = [(len(np.intersect1d(one.heldout_hashes(), other.heldout_hashes())), one, other) for one, other in pairs]
    shared, one, other = max(found, key=lambda pair: pair[0])
    more = "" if len(pairs) == 1 else f" (and {len(pairs) - 1:,} more pairs)"
    logger.warning(
        f"training documents of {one.url or one.path} may be held out in {other.url or other.path}{more}: the splits "
        f"were not drawn alike ({_rule(one) or 'unknown'}; {_rule(other) or 'unknown'}). {shared:,} documents are held "
        "out in both. Prepare all with the same --seed and --validation-fraction, or take out what they share."
    )


def _rule(tokens: Tokens) -> str | None:
    """By what documents were divided; `None` where the sources of the splits were given, or nothing is known."""
    made, seed = tokens.manifest.identity, tokens.manifest.seed
    if made.get("validation_sources") or "validation_fraction" not in made:
        return None
    return f"seed {seed}, {made['validation_fraction']:.3%}"


class MixedData(Tokens):
    """Corpora whose blocks are numbered through, corpus after corpus, in every split.

    Shares say how often training draws from a corpus (`cocomix.training.order.MixtureOrder`). Evaluations read all
    validation blocks, or where fewer are asked for, the first of each corpus in these shares.

    Args:
        parts: at least one; `CoCoMixError` where one has another tokenizer, block size, first token of blocks or splits
            than the first.
        weights: share of each, in any unit; the attribute `shares` adds up to 1.
    """

    def __init__(self, parts: Sequence[Tokens], weights: Sequence[float]) -> None:
        self.parts = tuple(parts)
        self.shares = tuple(weight / sum(weights) for weight in weights)
        first = parts[0]
        for part in parts[1:]:
            for what, found, expected in (
                ("tokenizer", part.manifest.tokenizer_fingerprint[:16], first.manifest.tokenizer_fingerprint[:16]),
                ("block size", part.manifest.block_size, first.manifest.block_size),
                ("begin-of-text token", part.manifest.bos_token_id, first.manifest.bos_token_id),
                ("splits", ", ".join(sorted(part.manifest.splits)), ", ".join(sorted(first.manifest.splits))),
            ):
                if found != expected:
                    raise CoCoMixError(
                        f"{part.path} and {first.path} cannot be mixed: they differ in their {what} ({found} and "
                        f"{expected}); prepare both with the same --tokenizer, --block-size and --prepend-bos."
                    )
        mixture = [[part.manifest.fingerprint, round(share, 9)] for part, share in zip(parts, self.shares, strict=True)]
        changes = {
            "fingerprint": fingerprint_json({"mixture": mixture}),
            "sources": tuple(source for part in parts for source in part.manifest.sources),
            "splits": {name: _joined([part.manifest.splits[name] for part in parts]) for name in first.manifest.splits},
            "invalid_utf8": sum(part.manifest.invalid_utf8 for part in parts),
        }
        super().__init__(first.path, first.manifest.model_copy(update=changes))

    def sizes(self, split: str) -> tuple[int, ...]:
        """Blocks of each corpus in a split."""
        return tuple(part.manifest.splits[split].blocks for part in self.parts)

    def first_blocks(self, split: str, count: int) -> list[int]:
        """Numbers of about `count` blocks: the first of each corpus, in the corpora's shares, at least one of each."""
        chosen: list[int] = []
        start = 0
        for size, share in zip(self.sizes(split), self.shares, strict=True):
            chosen += range(start, start + min(size, max(1, round(count * share))))
            start += size
        return chosen

    def _files(self, split: str) -> list[tuple[Tokens, TokensFile]]:
        return [(part, file) for part in self.parts for file in part.manifest.splits[split].files]


def _joined(splits: Sequence[SplitMeta]) -> SplitMeta:
    names = ("documents", "tokens", "bytes", "blocks")
    counts = {name: sum(getattr(split, name) for split in splits) for name in names}
    return SplitMeta(**counts, files=tuple(file for split in splits for file in split.files))
