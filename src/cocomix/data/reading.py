"""Texts out of files, here or at URLs: plain text, JSON Lines and Parquet, the first two also compressed.

Everything streams: a piece of about a megabyte, a line or a few rows are held at a time, whatever a file claims to be.
Data sets of the Hugging Face Hub are read by `datasets` (see `cocomix.data.units`). Files are not, because its readers
(5.2) hold a whole plain-text document or JSON array in memory, read a line of any length, end a truncated .zst file
without a word, turn numbers into texts, and name neither file nor line in errors.

Bytes are decoded with `surrogateescape`, so that bytes that are not UTF-8 and lone surrogates, which JSON can spell,
are the same thing when a text is cleaned.
"""

import codecs
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.artifacts import explained, file_system, retried, url_of
from cocomix.runtime.errors import CoCoMixError

PIECE_CHARACTERS = 1_000_000
"""Longer texts are handled in pieces of about this many characters, so that one huge document needs little memory."""
MAX_LINE_BYTES = 32 * 2**20
"""Longer lines of JSON Lines are refused: parsed, a hostile one takes some twenty times its size in memory. The longest
books have about 10 MB."""
SUPPORTED_SUFFIXES = ".txt, .md, .jsonl, .json (each also with .gz or .zst) and .parquet"

_CHUNK_BYTES = 1 << 18  # also bounds what is unpacked at once
_PARQUET_ROWS = 64  # decoded at once (our choice: what they hold stays small beside a model)
_PARQUET_BUFFER = 1 << 20
_KINDS = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_MAX_INVALID_SHARE = 0.1
_INVALID = re.compile("[\ud800-\udfff]")
_PARAGRAPH_BREAK = re.compile(r"(?<=[^\W_])(?=\r?\n\r?\n)")
_WORD_END = re.compile(r"(?<=[^\W_])(?=\s)")

_Texts = Iterator[tuple[str, bool]]  # and whether the document ends with it


class Piece(NamedTuple):
    """A document, or a piece of a long one."""

    text: str  # where it is a piece, the pieces together are the document
    last: bool = True  # whether the document ends here
    invalid: int = 0  # characters of it that stand for bytes that were not UTF-8
    read: int = 0  # bytes of input used up since the piece before, for progress; compressed bytes where compressed


def file_kind(name: str) -> str | None:
    """`text`, `json` or `parquet` by a file's name; None when it is none of them."""
    path = Path(name.lower())
    if path.suffix not in _CODECS:
        return _KINDS.get(path.suffix)
    found = _KINDS.get(Path(path.stem).suffix)
    return None if found == "parquet" else found


def is_compressed(name: str) -> bool:
    """Whether a file is compressed as a whole, so that it can only be read from its beginning."""
    return Path(name).suffix.lower() in _CODECS


def read_texts(where: str, text_column: str, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
    """The documents of a file, whose name decides the kind, in order, long ones in pieces, empty ones among them.

    With `stop` (one past the last) only a range: of a Parquet file row groups, of uncompressed JSON Lines the lines
    that begin at these bytes.
    """
    with opened(where) as raw:
        if file_kind(where) == "parquet":
            yield from _parquet_texts(where, raw, text_column, start, stop)
            return
        codec = _CODECS.get(Path(where).suffix.lower())
        stream: Any = raw if codec is None else pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
        position = start
        try:
            buffered = io.BufferedReader(stream, _CHUNK_BYTES)
            texts = _json_texts(where, buffered, text_column, start, stop)
            if file_kind(where) == "text":
                texts = _plain_text(where, buffered)
            for text, last in texts:
                reached = raw.tell() if stop is None else min(raw.tell(), stop)
                yield from cleaned(text, last, max(0, reached - position), where)
                position = max(position, reached)
        except OSError as error:
            if codec is None:
                raise
            raise CoCoMixError(f"{where} is truncated or damaged ({error}); fetch or compress it again.") from error


def cleaned(text: str, last: bool, read: int, where: str) -> Iterator[Piece]:
    """The pieces of a text with U+FFFD for what has no UTF-8 form; refused if that is too much."""
    left = len(text)
    for part in pieces(text):
        left, invalid = left - len(part), 0
        if not part.isascii():
            part, invalid = _INVALID.subn("\ufffd", part)
            if invalid > max(16, _MAX_INVALID_SHARE * len(part)):
                raise CoCoMixError(
                    f"{where} is not a UTF-8 text file ({invalid:,} of {len(part):,} characters cannot be decoded); "
                    "convert it to UTF-8 or leave it out."
                )
        yield Piece(part, last and not left, invalid, read)
        read = 0


def pieces(text: str, limit: int | None = None) -> Iterator[str]:
    """Cut a text into pieces of at most `limit` characters whose concatenation is the text.

    A cut lies before a blank line that follows a letter or digit, else before white space after a word, else anywhere.
    The pre-tokenizers of byte-level BPE end a token at the first two kinds of cut by themselves, so the tokens
    are those of the whole text; other tokenizers may differ in one token at a cut.
    """
    start, limit = 0, limit or PIECE_CHARACTERS
    while len(text) - start > limit:
        cut = _cut(text, start, start + limit)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _cut(text: str, start: int, end: int) -> int:
    for pattern in (_PARAGRAPH_BREAK, _WORD_END):
        for width in (10_000, end - start):
            cuts = [match.start() for match in pattern.finditer(text, max(start + 1, end - width), end)]
            if cuts:
                return cuts[-1]
    return end


def text_of(value: object, text_column: str, where: str = "") -> str:
    """`value`, if it is a text, or bytes, which may hold what is not UTF-8; `where` begins the refusal if it is not."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return value
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "a list"}
    raise CoCoMixError(
        f"{where}{text_column!r} holds {names.get(type(value), 'an object')}, not text; name the column of the text "
        "with --text-column, or remove the row."
    )


def _plain_text(where: str, stream: BinaryIO) -> _Texts:
    """One document, in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text = ""
    while chunk := stream.read(_CHUNK_BYTES):
        if b"\0" in chunk:
            raise CoCoMixError(f"{where} is not a UTF-8 text file (it has NUL bytes); convert it or leave it out.")
        text += decoder.decode(chunk) if text else decoder.decode(chunk).removeprefix("\ufeff")
        while len(text) > 2 * PIECE_CHARACTERS:
            piece = next(pieces(text))
            yield piece, False
            text = text[len(piece) :]
    yield text + decoder.decode(b"", final=True), True


def _json_texts(where: str, stream: BinaryIO, text_column: str, start: int, stop: int | None) -> _Texts:
    position = _next_line(stream, start)
    number = 0
    while stop is None or position < stop:
        line = stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        number += 1
        try:
            text = _text_of_line(line.removeprefix(codecs.BOM_UTF8) if position == 0 else line, text_column)
        except CoCoMixError as error:
            raise CoCoMixError(f"{where}:{_lines_before(where, start) + number}: {error}") from error
        if text is not None:
            yield text, True
        position += len(line)


def _next_line(stream: BinaryIO, start: int) -> int:
    """Go to the first line that begins at byte `start` or after it, and return where that is."""
    if start == 0:
        return 0
    position = stream.seek(start - 1)
    while rest := stream.readline(_CHUNK_BYTES):
        position += len(rest)
        if rest.endswith(b"\n"):
            break
    return position


def _lines_before(where: str, start: int) -> int:
    """Lines that begin before byte `start`."""
    count, left = 0, start
    with opened(where) as stream:
        while left > 0 and (chunk := stream.read(min(left, _CHUNK_BYTES))):
            count, left = count + chunk.count(b"\n"), left - len(chunk)
    return count + (start > 0 and not chunk.endswith(b"\n"))


def _text_of_line(line: bytes, text_column: str) -> str | None:
    if not line.strip():
        return None
    if len(line) > MAX_LINE_BYTES:
        raise CoCoMixError(f"this line has more than {MAX_LINE_BYTES:,} bytes; write one JSON object a line.")
    if not line.lstrip().startswith(b"{"):  # before it is parsed: a list of many lists takes much memory
        raise CoCoMixError('this line is no JSON object; write one object a line, such as {"text": "..."}.')
    try:
        row = json.loads(line.rstrip(b"\r\n").decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise CoCoMixError(
            f"this line is not valid JSON ({reason}); the file must hold one JSON object a line."
        ) from error
    if text_column not in row:
        fields = ", ".join(map(repr, row)) or "none"
        raise CoCoMixError(
            f"there is no field {text_column!r}; the fields are {fields}; choose one with --text-column."
        )
    return text_of(row[text_column], text_column)


def _parquet_texts(where: str, raw: BinaryIO, text_column: str, start: int, stop: int | None) -> Iterator[Piece]:
    file = open_parquet(where, raw, text_column)
    groups = list(range(start, file.metadata.num_row_groups if stop is None else stop))
    number = sum(file.metadata.row_group(group).num_rows for group in range(start))
    try:
        for batch in file.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=[text_column], use_threads=False):
            for value in batch.column(0).cast(pa.large_binary()).to_pylist():
                number += 1
                yield from cleaned(text_of(value, text_column, f"{where}, row {number}: "), True, 0, where)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _unreadable(where, error) from error


def open_parquet(where: str, stream: BinaryIO, text_column: str) -> pq.ParquetFile:
    """Read the footer of a file, named `where`, and see that it has the column; `stream` must stay open."""
    try:
        file = pq.ParquetFile(stream, buffer_size=_PARQUET_BUFFER, page_checksum_verification=True)
        schema = file.schema_arrow
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _unreadable(where, error) from error
    if text_column not in schema.names:
        raise CoCoMixError(
            f"{where}: there is no column {text_column!r}; the columns are {', '.join(map(repr, schema.names))}; "
            "choose one with --text-column."
        )
    kind = schema.field(text_column).type
    of_values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(of_values) or pa.types.is_large_string(of_values) or pa.types.is_string_view(of_values)):
        raise CoCoMixError(
            f"{where}: column {text_column!r} holds {kind}, not text; choose another with --text-column."
        )
    return file


def _unreadable(where: str, error: Exception) -> CoCoMixError:
    reason = str(error).splitlines()[0].rstrip(". ") if str(error) else type(error).__name__
    return CoCoMixError(f"{where} is not a readable Parquet file ({reason}); fetch it again.")


@contextmanager
def opened(where: str) -> Iterator[BinaryIO]:
    """Open a file, by path or URL, for reading bytes."""
    url = url_of(where)
    if url is None:
        try:
            stream = open(where, "rb")  # noqa: SIM115
        except OSError as error:
            raise CoCoMixError(f"cannot read {where}: {error.strerror}; check the path and its permissions.") from error
        with stream:
            yield stream
        return
    system, path = file_system(url)
    with explained(url), retried(lambda: system.open(path, "rb")) as stream:
        yield _RemoteFile(url, stream)  # type: ignore[misc]  # which reads as a BinaryIO does


class _RemoteFile(io.RawIOBase):
    """A file of fsspec whose reads are tried again; the fault that stays is one that no parser takes for damage."""

    def __init__(self, url: str, stream: Any) -> None:
        self._url, self._stream = url, stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        with explained(self._url):
            data = retried(lambda: self._stream.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)
