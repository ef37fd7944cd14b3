"""Units of encoding: bounded pieces of the input, each turned into tokens by itself, in any process, in any order.

A unit is some small files, one file, or a range of one: bytes of JSON Lines, row groups of Parquet, documents of a
token file, a shard of a data set on the Hub. Its tokens and a row about every document (long ones in pieces) are
appended to a log in the staging folder, so that a kill at any moment loses a second of work. A log is named by
everything that determines its content: whatever else of a command is changed before it is given again, it counts.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cocomix.artifacts import fingerprint_json
from cocomix.data.documents import Source, SourceFile
from cocomix.data.prepare_settings import PrepareSettings
from cocomix.data.reading import Piece, cleaned, file_kind, is_compressed, open_parquet, opened, read_texts, text_of
from cocomix.data.splits import DocumentHash, draw_of
from cocomix.data.token_files import TokenFiles, token_files
from cocomix.data.tokenizer import encode_batch
from cocomix.data.tokens import id_dtype
from cocomix.data.unit_log import UnitLog
from cocomix.runtime.byte_level import plain_encoder
from cocomix.runtime.errors import CoCoMixError, require_extra

logger = logging.getLogger(__name__)

ALGORITHM = 1  # raised whenever the same input would give other tokens or other documents
MIN_UNIT_BYTES, MAX_UNIT_BYTES = 8 * 2**20, 128 * 2**20  # of input; 8 MiB are some seconds of one core
UNITS = 8192  # about how many units a large corpus is cut into, between these sizes
_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class Unit:
    """What is encoded at a time."""

    source: int  # its number among all sources
    kind: str  # of the source
    validates: bool  # whether the source is one of the validation split's
    spans: tuple[SourceFile, ...]  # to read, in order

    @property
    def size(self) -> int:
        """Bytes of input; 0 where it is not known."""
        return sum(span.size for span in self.spans)


@dataclass(frozen=True)
class Encoding:
    """How units are encoded; picklable."""

    settings: PrepareSettings  # how their documents are read
    threshold: int  # of the split, for `max_bytes`
    folder: Path  # of the logs
    tokenizer: Path  # folder of the tokenizer, whose fingerprint, end-of-document token and size follow
    tokenizer_fingerprint: str
    eos_token_id: int
    vocab_size: int

    def log(self, unit: Unit) -> UnitLog:
        """The log of a unit."""
        settings, limited = self.settings, self.settings.max_bytes is not None
        reading = {
            **settings.model_dump(include={"text_column", "token_dtype", "max_bytes"}),
            "hub": settings.hub,
            "seed": settings.seed if limited else 0,
            "threshold": self.threshold if limited else 0,
        }
        of_unit = [unit.kind, unit.validates, [asdict(span) for span in unit.spans]]
        of_tokens = [self.tokenizer_fingerprint, self.eos_token_id, self.vocab_size]
        name = fingerprint_json([ALGORITHM, reading, of_unit, of_tokens])[:32]
        return UnitLog(self.folder / name, id_dtype(self.vocab_size))


def plan_units(sources: Sequence[Source], text_column: str, token_files: TokenFiles | None) -> list[Unit]:
    """Cut sources into units, in order; the same sources give the same units.

    Raises `CoCoMixError` where a large Parquet file lacks the column, or a token file is none.
    """
    total = sum(file.size for source in sources for file in source.files)
    target = min(max(MIN_UNIT_BYTES, total // UNITS), MAX_UNIT_BYTES)
    units = []
    for number, source in enumerate(sources):
        waiting: list[SourceFile] = []
        spans = list(_spans(source, target, text_column, token_files))
        for span in spans:
            waiting.append(span)
            if source.kind == "hub" or span is spans[-1] or sum(waited.size for waited in waiting) >= target:
                units.append(Unit(number, source.kind, source.validates, tuple(waiting)))
                waiting = []
    return units


def _spans(source: Source, target: int, text_column: str, token_files: TokenFiles | None) -> Iterator[SourceFile]:
    if source.kind == "documentation":
        yield SourceFile(source.name, 0)
    elif source.kind == "hub":
        logger.info(f"there is no {source.name} here: asking the Hugging Face Hub for a data set of this name")
        shards = int(_hub_rows(source.name, source.hub).num_shards)
        yield from (SourceFile(source.name, 0, start=shard, stop=shards) for shard in range(shards))
    for file in source.files:
        kind = source.kind if source.kind == "tokens" else file_kind(file.where)
        if kind == "tokens":
            assert token_files is not None
            for start, stop, size in token_files.ranges(file.where, target):
                yield replace(file, size=size, start=start, stop=stop)
        elif file.size <= 2 * target or kind == "text" or is_compressed(file.where):
            yield file
        elif kind == "json":
            edges = [*range(0, file.size - target // 2, target), file.size]
            yield from (replace(file, size=stop - start, start=start, stop=stop) for start, stop in pairwise(edges))
        else:
            yield from _row_group_spans(file, target, text_column)


def _row_group_spans(file: SourceFile, target: int, text_column: str) -> Iterator[SourceFile]:
    with opened(file.where) as stream:
        metadata = open_parquet(file.where, stream, text_column).metadata
    share = file.size / max(1, metadata.num_rows)
    start, rows = 0, 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows * share >= target or group == metadata.num_row_groups - 1:
            yield replace(file, size=int(rows * share), start=start, stop=group + 1)
            start, rows = group + 1, 0


class Part(NamedTuple):
    """A document, or a piece of a long one."""

    content: str | NDArray[Any]  # its text; or of token files its tokens, with the end-of-document token
    bytes: int  # UTF-8 bytes of its text
    hash: int  # where the document ends here, its `DocumentHash`; else 0
    invalid: int  # characters put in for bytes that were not UTF-8
    last: bool  # whether the document ends here
    read: int  # bytes of input used up since the part before


def unit_parts(
    unit: Unit, settings: PrepareSettings, threshold: int, token_files: TokenFiles | None = None
) -> Iterator[Part]:
    """The documents of a unit; texts of nothing but white space are left out.

    With `max_bytes`, ends where the unit's training documents, or one document, have so many; `threshold` tells them.
    """
    limit = math.inf if settings.max_bytes is None or unit.validates else settings.max_bytes
    digest, size, training, unread = DocumentHash(), 0, 0, 0
    for content, text, last, invalid, read in _contents(unit, settings, token_files):
        unread += read
        if last and not size and (not text or text.isspace()) and isinstance(content, str):
            continue
        digest.update(text)
        size += len(text)
        last = last or size >= limit
        yield Part(content, len(text), digest.value() if last else 0, invalid, last, unread)
        unread = 0
        if last:
            if limit < math.inf:
                draw = draw_of(digest.value(), settings.seed)
                training += size if draw >= threshold else 0
                if max(training, size) >= limit:
                    return
            digest, size = DocumentHash(), 0


def _contents(
    unit: Unit, settings: PrepareSettings, token_files: TokenFiles | None
) -> Iterator[tuple[str | NDArray[Any], bytes, bool, int, int]]:
    """Content, text as UTF-8, whether the document ends, invalid characters, bytes of input."""
    for span in unit.spans:
        if unit.kind == "tokens":
            assert token_files is not None
            assert span.stop is not None
            for tokens, text, last, read in token_files.documents(span.where, span.start, span.stop):
                yield tokens, text, last, 0, read
            continue
        if unit.kind == "files":
            found = read_texts(span.where, settings.text_column, span.start, span.stop)
        elif unit.kind == "hub":
            found = _hub_pieces(span, settings)
        else:
            from cocomix.data.documentation import documentation_texts

            found = (Piece(text) for _, text in documentation_texts())
        for piece in found:
            yield piece.text, piece.text.encode(), piece.last, piece.invalid, piece.read


def _hub_pieces(span: SourceFile, settings: PrepareSettings) -> Iterator[Piece]:
    assert span.stop is not None
    rows = _hub_rows(span.where, settings.hub).shard(num_shards=span.stop, index=span.start)
    for number, row in enumerate(rows):
        where = f"{span.where}, shard {span.start}, row {number}"
        if settings.text_column not in row:
            raise CoCoMixError(
                f"{where}: there is no column {settings.text_column!r}; the columns are "
                f"{', '.join(map(repr, row))}; choose one with --text-column."
            )
        yield from cleaned(text_of(row[settings.text_column], settings.text_column, f"{where}: "), True, 0, where)


def _hub_rows(name: str, arguments: dict[str, Any]) -> Any:
    require_extra("hub", "datasets", purpose=f"reading {name} from the Hugging Face Hub")
    import datasets

    try:
        return datasets.load_dataset(name, streaming=True, **arguments)
    except Exception as error:  # the Hub client raises errors of many unrelated kinds
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise CoCoMixError(
            f"{name} is not a path here, and not a data set that the Hugging Face Hub gives ({reason}); check the "
            "name, the configuration and the split."
        ) from error


def encode_unit(encoding: Encoding, unit: Unit, advance: Callable[[float], None], stop: Callable[[], None]) -> None:
    """Encode a unit, going on where its log ends; `advance` is called with bytes of input, `stop` now and then."""
    with encoding.log(unit) as log:
        if log.finished:
            advance(unit.size)
            return
        of_tokens = token_files(encoding.tokenizer, encoding.eos_token_id, encoding.settings.token_dtype)
        parts = unit_parts(unit, encoding.settings, encoding.threshold, of_tokens)
        read = sum(part.read for part in islice(parts, log.kept))
        advance(read)
        for batch in _batches(parts):
            stop()
            contents: list[Any] = [part.content for part in batch]
            if unit.kind != "tokens":
                end = [encoding.eos_token_id]
                encoded = encode_batch(_encoder(encoding.tokenizer), contents)
                contents = [of_part + end * part.last for part, of_part in zip(batch, encoded, strict=True)]
            tokens = [np.asarray(of_part, dtype=log.dtype) for of_part in contents]
            log.append(tokens, [(part.hash, part.bytes, part.invalid, part.last) for part in batch])
            done = sum(part.read for part in batch)
            read += done
            advance(done)
        advance(unit.size - read)  # blank lines; what of a Parquet file is not the text
        log.finish()


_encoder = lru_cache(maxsize=4)(plain_encoder)


def _batches(parts: Iterator[Part]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    length = 0
    for part in parts:
        batch.append(part)
        length += len(part.content)
        if len(batch) >= _BATCH_DOCUMENTS or length >= _BATCH_CHARACTERS:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
