"""From text to packed token blocks: the work behind `cocomix prepare`."""

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerFast

from cocomix.artifacts.output import staged_directory, write_json
from cocomix.data.blocks import BlockWriter, SplitMeta, token_dtype
from cocomix.data.documents import Document, Source, read_documents, resolve_sources
from cocomix.data.formats import pieces
from cocomix.data.prepared import FORMAT_VERSION, DataMeta, PreparedData, SourceMeta, data_fingerprint
from cocomix.data.splits import HEAD_CHARACTERS, TRAIN, VALIDATION, assign_splits
from cocomix.data.token_files import is_token_source, prepare_token_files
from cocomix.data.tokenizer import (
    check_vocab_size,
    encode_batch,
    plain_encoder,
    set_begin_of_text,
    tokenizer_fingerprint,
    train_tokenizer,
    vocabulary_size,
)
from cocomix.runtime.console import Advance, Reporter, SilentReporter
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer

__all__ = ["PrepareSettings", "prepare"]

_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 2_000_000

SplitDocuments = Iterator[tuple[str, Document]]


class PrepareSettings(BaseModel):
    """What to prepare and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[str, ...]
    """Files (.txt, .md, .jsonl, .json, each also .gz or .zst; .parquet), folders, Hub data set names or `docs:`; or
    token files (.bin, see `cocomix.data.token_files`) and nothing else."""
    validation_sources: tuple[str, ...] = ()
    """Sources of the validation split; when given, all of `sources` trains and `validation_fraction` is not used."""
    validation_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Expected share of the documents that validates, drawn by seed and document number; at least one document."""
    text_column: str = "text"
    """Field of JSON Lines or column of Parquet and Hub data sets that holds the text."""
    tokenizer: str | None = None
    """An existing tokenizer: a folder, a GGUF file or a Hub name; either this or `vocab_size`."""
    vocab_size: int | None = None
    """Train a byte-level BPE with this many entries on the training documents; either this or `tokenizer`."""
    tokenizer_training_bytes: int = Field(default=100_000_000, gt=0)
    """UTF-8 bytes of training text, from the beginning, that the BPE is trained on at most; they are held in memory."""
    block_size: int = Field(default=1024, ge=2)
    """Tokens per block."""
    prepend_bos: bool = False
    """Begin every block with the tokenizer's begin-of-text token, which takes one of its places, as SAELens' option of
    this name does; for teachers and dictionaries that were made for such contexts, Gemma's among them."""
    blocks_per_shard: int = Field(default=4096, ge=1)
    """Blocks per file; one file of each split is held in memory while writing."""
    seed: int = 0
    """Seed of the split by document."""
    max_bytes: int | None = Field(default=None, gt=0)
    """Stop with the document (or 1 MB piece of a longer one) that reaches this many UTF-8 bytes of training text."""
    hf_config: str | None = None
    """Configuration of data sets on the Hugging Face Hub."""
    hf_split: str = "train"
    """Split of data sets on the Hugging Face Hub that is read."""
    hf_revision: str | None = None
    """Commit, tag or branch of data sets on the Hugging Face Hub; pin a commit to be able to repeat it."""
    tokenizer_revision: str | None = None
    """Commit, tag or branch of a `tokenizer` on the Hugging Face Hub."""


def prepare(settings: PrepareSettings, output: Path, reporter: Reporter | None = None) -> PreparedData:
    """Turn text into packed token blocks in the folder `output`.

    Every document is encoded without special tokens and followed by the end-of-document token; documents are packed
    one after another, so that blocks begin and end anywhere. With `prepend_bos` each block has the begin-of-text token
    first and then the next `block_size` − 1 tokens of the documents. The tokenizer is saved so that it begins texts in
    the same way. The same sources and settings give the same bytes. Memory does not grow with the corpus.

    Raises:
        CoCoMixError: the settings contradict each other, a source or the tokenizer cannot be used, a split would hold
            less than one block, or `output` exists. Nothing is left behind.
    """
    reporter = reporter if reporter is not None else SilentReporter()
    if any(is_token_source(name) for name in (*settings.sources, *settings.validation_sources)):
        return prepare_token_files(settings, output, reporter)
    return _Preparation(settings, reporter).run(output)


class _Preparation:
    """One call of `prepare`: its settings, its sources and what was counted on the way."""

    def __init__(self, settings: PrepareSettings, reporter: Reporter) -> None:
        _check(settings)
        self.settings = settings
        self.reporter = reporter
        resolved = resolve_sources(
            (*settings.sources, *settings.validation_sources),
            hf_config=settings.hf_config,
            hf_split=settings.hf_split,
            hf_revision=settings.hf_revision,
        )
        self.sources = resolved[: len(settings.sources)]
        self.validation_sources = resolved[len(settings.sources) :]
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.source_documents: Counter[str] = Counter()
        self.source_bytes: Counter[str] = Counter()
        self.invalid_utf8 = 0

    def run(self, output: Path) -> PreparedData:
        started = time.perf_counter()
        for source in (*self.sources, *self.validation_sources):
            if source.ignored:
                self.reporter.say(f"{source.name}: left out {source.ignored:,} files of other kinds")
        with staged_directory(output) as folder:
            name, revision = self.settings.tokenizer, self.settings.tokenizer_revision
            tokenizer = None if name is None else load_tokenizer(name, revision)
            if tokenizer is not None:
                set_begin_of_text(tokenizer, self.settings.prepend_bos, str(name))  # or refuse it before reading
            with self.reporter.progress("reading and encoding", self._total_megabytes(), "MB") as advance:
                documents = self._counted(self._stream(), advance)
                if tokenizer is None:
                    tokenizer, documents = self._train_tokenizer(documents)
                    set_begin_of_text(tokenizer, self.settings.prepend_bos, "trained here")
                splits = self._write_blocks(folder, tokenizer, documents)
            self._check_splits(splits)
            tokenizer.save_pretrained(folder / "tokenizer")
            meta = self._meta(tokenizer, splits)
            write_json(folder / "meta.json", meta.model_dump(mode="json"))
        self._report(meta, time.perf_counter() - started)
        return PreparedData.open(output)

    def _total_megabytes(self) -> float | None:
        if self.settings.max_bytes is not None:
            return self.settings.max_bytes / 1e6
        sizes = [source.input_bytes() for source in (*self.sources, *self.validation_sources)]
        known = [size for size in sizes if size is not None]
        return sum(known) / 1e6 if len(known) == len(sizes) else None

    def _stream(self) -> SplitDocuments:
        """Every document with its split: training first where the validation split has sources of its own."""
        settings = self.settings
        documents = read_documents(self.sources, settings.text_column)
        if not self.validation_sources:
            head = HEAD_CHARACTERS if settings.max_bytes is None else min(HEAD_CHARACTERS, settings.max_bytes)
            yield from self._limited(assign_splits(documents, settings.validation_fraction, settings.seed, head))
            return
        yield from self._limited((TRAIN, document) for document in documents)
        for document in read_documents(self.validation_sources, settings.text_column):
            yield VALIDATION, document

    def _limited(self, documents: SplitDocuments) -> SplitDocuments:
        """The stream up to `max_bytes` of training text."""
        taken = 0
        for split, document in documents:
            taken += _utf8_bytes(document.text) if split == TRAIN else 0
            if self.settings.max_bytes is not None and taken >= self.settings.max_bytes:
                yield split, replace(document, last=True)
                return
            yield split, document

    def _counted(self, documents: SplitDocuments, advance: Advance) -> SplitDocuments:
        for split, document in documents:
            size = _utf8_bytes(document.text)
            self.documents[split] += document.last
            self.source_documents[document.source] += document.last
            self.bytes[split] += size
            self.source_bytes[document.source] += size
            self.invalid_utf8 += document.invalid_utf8
            advance((document.read if self.settings.max_bytes is None else size) / 1e6)
            yield split, document

    def _train_tokenizer(self, documents: SplitDocuments) -> tuple[PreTrainedTokenizerFast, SplitDocuments]:
        """Train the BPE on the head of the stream; return the tokenizer and the whole stream again."""
        wanted = self.settings.vocab_size
        assert wanted is not None  # _check has seen to it
        head: deque[tuple[str, Document]] = deque()
        for item in documents:
            head.append(item)
            if self.bytes[TRAIN] >= self.settings.tokenizer_training_bytes:
                break
        self.reporter.say(f"training a tokenizer of {wanted:,} entries on {self.bytes[TRAIN] / 1e6:,.1f} MB")
        tokenizer = train_tokenizer((document.text for split, document in head if split == TRAIN), wanted)
        reached = vocabulary_size(tokenizer)
        if reached < wanted:
            self.reporter.warn(f"the training text is enough for a vocabulary of {reached:,}, not {wanted:,}")
        drained = (head.popleft() for _ in range(len(head)))
        return tokenizer, chain(drained, documents)

    def _write_blocks(
        self, folder: Path, tokenizer: PreTrainedTokenizerFast, documents: SplitDocuments
    ) -> dict[str, SplitMeta]:
        settings = self.settings
        dtype = token_dtype(vocabulary_size(tokenizer))
        writers = {
            split: BlockWriter(
                folder / split,
                block_size=settings.block_size,
                blocks_per_shard=settings.blocks_per_shard,
                dtype=dtype,
                bos_token_id=self._begin(tokenizer),
            )
            for split in (TRAIN, VALIDATION)
        }
        encoder = plain_encoder(tokenizer)
        for batch in _batches(documents):
            encoded = encode_batch(encoder, [document.text for _, document in batch])
            for (split, document), tokens in zip(batch, encoded, strict=True):
                writers[split].add(tokens)
                if document.last:
                    writers[split].add([tokenizer.eos_token_id])
        splits = {}
        for split, writer in writers.items():
            shards = writer.close()
            splits[split] = SplitMeta(
                documents=self.documents[split],
                tokens=writer.tokens,
                bytes=self.bytes[split],
                blocks=sum(shard.blocks for shard in shards),
                shards=shards,
            )
        return splits

    def _begin(self, tokenizer: PreTrainedTokenizerFast) -> int | None:
        """What every block begins with."""
        return int(tokenizer.bos_token_id) if self.settings.prepend_bos else None

    def _check_splits(self, splits: dict[str, SplitMeta]) -> None:
        for name, split in splits.items():
            if split.blocks:
                continue
            if name == VALIDATION and sum(self.documents.values()) == 1:
                raise CoCoMixError(
                    "the sources hold a single document, and a document is not cut between the splits; "
                    "give the validation text with --validation, or more documents."
                )
            remedies = {
                TRAIN: "give more text or a smaller --block-size",
                VALIDATION: "give more text, --validation, a larger --validation-fraction or a smaller --block-size",
            }
            raise CoCoMixError(
                f"the {name} split has {split.documents:,} documents with {split.tokens:,} tokens, less than one block "
                f"of {self.settings.block_size:,}; {remedies[name]}."
            )

    def _meta(self, tokenizer: PreTrainedTokenizerFast, splits: dict[str, SplitMeta]) -> DataMeta:
        settings = self.settings
        shared = (TRAIN,) if self.validation_sources else (TRAIN, VALIDATION)
        fingerprint = tokenizer_fingerprint(tokenizer)
        return DataMeta(
            format_version=FORMAT_VERSION,
            cocomix_version=version("cocomix"),
            fingerprint=data_fingerprint(fingerprint, settings.block_size, splits, self._begin(tokenizer)),
            tokenizer_fingerprint=fingerprint,
            tokenizer_name=settings.tokenizer or f"byte-level BPE of {vocabulary_size(tokenizer):,} trained here",
            vocab_size=vocabulary_size(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=self._begin(tokenizer),
            block_size=settings.block_size,
            seed=settings.seed,
            sources=(
                *self._source_metas(self.sources, shared),
                *self._source_metas(self.validation_sources, (VALIDATION,)),
            ),
            splits=splits,
            invalid_utf8=self.invalid_utf8,
        )

    def _source_metas(self, sources: Iterable[Source], splits: tuple[str, ...]) -> Iterator[SourceMeta]:
        for source in sources:
            yield SourceMeta(
                name=source.name,
                kind=source.kind,
                splits=splits,
                documents=self.source_documents[source.name],
                bytes=self.source_bytes[source.name],
            )

    def _report(self, meta: DataMeta, seconds: float) -> None:
        if meta.invalid_utf8:
            self.reporter.warn(
                f"{meta.invalid_utf8:,} invalid UTF-8 sequences were replaced by U+FFFD; see invalid_utf8 in meta.json"
            )
        for name, split in meta.splits.items():
            self.reporter.say(
                f"{name}: {split.documents:,} documents, {split.bytes / 1e6:,.1f} MB, {split.tokens:,} tokens, "
                f"{split.blocks:,} blocks of {meta.block_size:,} in {len(split.shards):,} shards"
            )
        tokens = sum(split.tokens for split in meta.splits.values())
        self.reporter.say(f"prepared {tokens:,} tokens in {seconds:,.1f} s ({tokens / seconds:,.0f} tokens/s)")


def _check(settings: PrepareSettings) -> None:
    if not settings.sources:
        raise CoCoMixError("there is no source to read; give a file, a folder, a Hugging Face data set name or docs:.")
    if (settings.tokenizer is None) == (settings.vocab_size is None):
        given = "neither of them" if settings.tokenizer is None else "both"
        raise CoCoMixError(
            f"give either --tokenizer, to use an existing one, or --vocab-size, to train one; {given} was given."
        )
    if settings.vocab_size is not None:
        check_vocab_size(settings.vocab_size)
    if not settings.validation_sources and settings.validation_fraction == 0:
        raise CoCoMixError(
            "there would be no validation split: --validation-fraction is 0 and no --validation is given; give one."
        )


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _batches(documents: SplitDocuments) -> Iterator[list[tuple[str, Document]]]:
    """Group documents, long ones cut into pieces, for the encoder."""
    batch: list[tuple[str, Document]] = []
    characters = 0
    for split, document in documents:
        rest = len(document.text)
        for text in pieces(document.text):
            rest -= len(text)
            batch.append((split, replace(document, text=text, last=document.last and rest == 0)))
            characters += len(text)
            if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch
