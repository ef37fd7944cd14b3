"""Token files of other code as prepared data: flat little-endian uint16 token numbers, no header.

The released CoCoMix code and nanoGPT keep a corpus as `train.bin` and `val.bin`: documents encoded without special
tokens, each followed by the end-of-document token, one after another. They are memory-mapped and copied into shards;
tokens stay what they are.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from cocomix.artifacts.output import staged_directory, write_json
from cocomix.data.blocks import BlockWriter, SplitMeta, token_dtype
from cocomix.data.prepared import FORMAT_VERSION, DataMeta, PreparedData, SourceMeta, data_fingerprint
from cocomix.data.splits import TRAIN, VALIDATION, split_draw
from cocomix.data.tokenizer import set_begin_of_text, tokenizer_fingerprint, vocabulary_size
from cocomix.runtime.console import Advance, Reporter
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer

if TYPE_CHECKING:
    from cocomix.data.preparation import PrepareSettings

__all__ = ["is_token_source", "prepare_token_files"]

_CHUNK = 2**22  # tokens looked at at once: 8 MiB
_DTYPE = np.dtype("<u2")

Tokens = npt.NDArray[np.uint16]


def is_token_source(name: str) -> bool:
    """Whether a source is a `.bin` file, or a folder that holds `train.bin`."""
    path = Path(name).expanduser()
    return path.suffix == ".bin" or (path / "train.bin").is_file()


@dataclass(frozen=True)
class _TokenFile:
    """One memory-mapped file and the split it goes to; without one, its documents are drawn."""

    source: str
    path: Path
    tokens: Tokens
    split: str | None


def prepare_token_files(settings: "PrepareSettings", output: Path, reporter: Reporter) -> PreparedData:
    """Write token files as prepared data, as if their documents had been encoded here.

    A folder's `train.bin` trains and its `val.bin` validates, unless `validation_sources` (files) do. Where nothing is
    given for validation, documents are drawn as `assign_splits` draws them: the same documents in the same order give
    the same blocks as from their texts.

    Args:
        settings: with the tokenizer whose tokens these are.
        output: folder to write.
        reporter: told about progress.

    Raises:
        CoCoMixError: a source is no token file, is empty or damaged, or holds tokens that the tokenizer does not have;
            the settings ask for what only texts have; a split would hold less than one block; or `output` exists.
    """
    if settings.tokenizer is None or settings.max_bytes is not None:
        raise CoCoMixError(
            "token files need --tokenizer, the one they were made with, and take neither --vocab-size nor --max-bytes."
        )
    started = time.perf_counter()
    files = _open_files(settings)
    tokenizer = load_tokenizer(settings.tokenizer, settings.tokenizer_revision)
    with staged_directory(output) as folder:
        copying = _Copying(settings, tokenizer, folder)
        megabytes = sum(file.tokens.nbytes for file in files) / 1e6
        with reporter.progress("copying tokens", megabytes, "MB") as advance:
            copying.copy(files, advance)
        for file in files:
            if not copying.ended[str(file.path)]:
                reporter.warn(f"{file.path} has no end-of-document token ({copying.end}): was it made with this one?")
        splits = copying.close()
        tokenizer.save_pretrained(folder / "tokenizer")
        write_json(folder / "meta.json", copying.meta(files, splits).model_dump(mode="json"))
    for name, part in splits.items():
        reporter.say(f"{name}: {part.documents:,} documents, {part.tokens:,} tokens, {part.blocks:,} blocks")
    reporter.say(f"copied {megabytes / 2:,.1f} million tokens in {time.perf_counter() - started:,.1f} s")
    return PreparedData.open(output)


class _Copying:
    """One call of `prepare_token_files`: where tokens go, and what was counted on the way."""

    def __init__(self, settings: "PrepareSettings", tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        self.settings, self.tokenizer = settings, tokenizer
        self.vocab_size, self.end = vocabulary_size(tokenizer), int(tokenizer.eos_token_id)
        self.begin = set_begin_of_text(tokenizer, settings.prepend_bos, str(settings.tokenizer))
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.source_documents: Counter[str] = Counter()
        self.source_bytes: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self._lengths = _byte_lengths(tokenizer, self.end)
        self._writers = {
            split: BlockWriter(
                folder / split,
                block_size=settings.block_size,
                blocks_per_shard=settings.blocks_per_shard,
                dtype=token_dtype(self.vocab_size),
                bos_token_id=self.begin,
            )
            for split in (TRAIN, VALIDATION)
        }

    def copy(self, files: Sequence[_TokenFile], advance: Advance) -> None:
        """Copy every document to its split, in order."""
        validates = self._drawn(files) if files[0].split is None else np.zeros(0, dtype=np.bool_)
        number = 0
        for file in files:
            for piece, last in self._pieces(file):
                split = file.split or (VALIDATION if validates[number] else TRAIN)
                size = self._text_bytes(piece)
                self._writers[split].add(piece)
                self.documents[split] += last
                self.bytes[split] += size
                self.source_documents[file.source] += last
                self.source_bytes[file.source] += size
                self.ended[str(file.path)] += bool(piece[-1] == self.end)
                number += last
                advance(piece.nbytes / 1e6)

    def _pieces(self, file: _TokenFile) -> Iterator[tuple[Tokens, bool]]:
        """Documents with their end tokens, long ones in pieces, and whether the document ends with the piece."""
        total = len(file.tokens)
        for start in range(0, total, _CHUNK):
            chunk = np.asarray(file.tokens[start : start + _CHUNK])
            if chunk.max() >= self.vocab_size:
                where = int(chunk.argmax())
                raise CoCoMixError(
                    f"{file.path} holds token {chunk[where]} at place {start + where:,}, and the tokenizer "
                    f"{self.settings.tokenizer} has {self.vocab_size:,} tokens; give the one the file was made with."
                )
            begin = 0
            for stop in (*(np.flatnonzero(chunk == self.end) + 1).tolist(), len(chunk)):
                if stop > begin:
                    piece = chunk[begin:stop]
                    yield piece, bool(piece[-1] == self.end) or start + stop == total
                begin = stop

    def _drawn(self, files: Sequence[_TokenFile]) -> npt.NDArray[np.bool_]:
        """Which documents validate, as `assign_splits` draws them from a small corpus."""
        count = sum(last for file in files for _, last in self._pieces(file))
        draws = np.array([split_draw(self.settings.seed, number) for number in range(count)])
        validates = draws < self.settings.validation_fraction
        if count > 1 and not validates.any():
            validates[draws.argmin()] = True
        elif count > 1 and validates.all():
            validates[draws.argmax()] = False
        return validates

    def _text_bytes(self, piece: Tokens) -> int:
        """UTF-8 bytes of the text of a piece, without the end token."""
        if self._lengths is not None:
            return int(self._lengths[piece].sum())
        text: str = self.tokenizer.decode(piece[piece != self.end], clean_up_tokenization_spaces=False)
        return len(text.encode())

    def close(self) -> dict[str, SplitMeta]:
        """Write what is left and describe the splits.

        Raises:
            CoCoMixError: one holds less than a block.
        """
        splits = {}
        for split, writer in self._writers.items():
            shards = writer.close()
            if not shards:
                raise CoCoMixError(
                    f"the {split} split has {writer.tokens:,} tokens, less than one block of "
                    f"{self.settings.block_size:,}; give more tokens, --validation or a smaller --block-size."
                )
            splits[split] = SplitMeta(
                documents=self.documents[split],
                tokens=writer.tokens,
                bytes=self.bytes[split],
                blocks=sum(shard.blocks for shard in shards),
                shards=shards,
            )
        return splits

    def meta(self, files: Sequence[_TokenFile], splits: dict[str, SplitMeta]) -> DataMeta:
        """Describe the prepared folder."""
        settings, fingerprint = self.settings, tokenizer_fingerprint(self.tokenizer)
        sources: dict[str, dict[str, None]] = {}
        for file in files:
            sources.setdefault(file.source, {}).update(dict.fromkeys((file.split,) if file.split else splits))
        return DataMeta(
            format_version=FORMAT_VERSION,
            cocomix_version=version("cocomix"),
            fingerprint=data_fingerprint(fingerprint, settings.block_size, splits, self.begin),
            tokenizer_fingerprint=fingerprint,
            tokenizer_name=str(settings.tokenizer),
            vocab_size=self.vocab_size,
            eos_token_id=self.end,
            bos_token_id=self.begin,
            block_size=settings.block_size,
            seed=settings.seed,
            sources=tuple(
                SourceMeta(
                    name=name,
                    kind="tokens",
                    splits=tuple(of),
                    documents=self.source_documents[name],
                    bytes=self.source_bytes[name],
                )
                for name, of in sources.items()
            ),
            splits=splits,
            invalid_utf8=0,
        )


def _open_files(settings: "PrepareSettings") -> list[_TokenFile]:
    """The token files and their splits, memory-mapped."""
    found: list[tuple[str, Path, str | None]] = []
    for source in settings.sources:
        path = Path(source).expanduser()
        if not is_token_source(source):
            raise CoCoMixError(f"{source} is no token file (.bin), and other sources are; prepare them apart.")
        found.append((source, path / "train.bin" if path.is_dir() else path, None))
        if path.is_dir() and (path / "val.bin").is_file() and not settings.validation_sources:
            found.append((source, path / "val.bin", VALIDATION))
    for source in settings.validation_sources:
        path = Path(source).expanduser()
        if path.suffix != ".bin":
            raise CoCoMixError(f"{source} is no token file (.bin), and other sources are; name one with --validation.")
        found.append((source, path, VALIDATION))
    drawn = all(split is None for _, _, split in found)
    return [
        _TokenFile(source, path, _mapped(path), split or (None if drawn else TRAIN)) for source, path, split in found
    ]


def _mapped(path: Path) -> Tokens:
    try:
        size = path.stat().st_size
        if size == 0 or size % _DTYPE.itemsize:
            raise CoCoMixError(f"{path} has {size:,} bytes, which are no uint16 tokens; the file is empty or damaged.")
        return np.memmap(path, dtype=_DTYPE, mode="r")
    except OSError as error:
        raise CoCoMixError(f"cannot read {path}: {error.strerror}; check the path and its permissions.") from error


def _byte_lengths(tokenizer: PreTrainedTokenizerFast, end: int) -> npt.NDArray[np.int64] | None:
    """UTF-8 bytes that each token stands for, where the tokenizer is a byte-level BPE: a character of it is a byte."""
    decoder: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    if decoder.get("type") != "ByteLevel":
        return None
    lengths = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
    for token, number in tokenizer.get_vocab().items():
        lengths[number] = 0 if number == end else len(token)
    return lengths
