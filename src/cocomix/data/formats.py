"""Texts out of single files: plain text, JSON Lines (plain, gzip, Zstandard) and Parquet.

Every reader streams: it holds one piece, one line or one small batch at a time, whatever the size of the file.
Bytes that are not UTF-8 become U+FFFD and are counted; a file that is not text at all is refused.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from cocomix.data.decoding import decode, json_type, text_of
from cocomix.data.parquet import parquet_texts
from cocomix.runtime.errors import CoCoMixError

__all__ = ["PIECE_CHARACTERS", "SUPPORTED_SUFFIXES", "FileText", "file_format", "pieces", "read_texts"]

PIECE_CHARACTERS = 1_000_000
"""Longer texts are handled in pieces of about this many characters, so that one huge document needs little memory."""

_CHUNK_BYTES = 1 << 18
_FORMATS = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_COMPRESSIONS = (".gz", ".zst")
SUPPORTED_SUFFIXES = ".txt, .md, .jsonl, .json (each also with .gz or .zst) and .parquet"
_PARAGRAPH_BREAK = re.compile(r"(?<=[^\W_])(?=\r?\n\r?\n)")
_WORD_END = re.compile(r"(?<=[^\W_])(?=\s)")


@dataclass(frozen=True)
class FileText:
    """A document of a file, or a piece of one."""

    text: str
    last: bool
    """Whether the document ends here; a long plain text comes in several pieces."""
    invalid: int
    """Characters of `text` that stand for bytes that were not UTF-8."""
    position: int
    """Bytes of the file read so far."""


def file_format(path: Path) -> str | None:
    """`text`, `json` or `parquet` by the file's name; None when it is none of them."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        found = _FORMATS.get(suffixes[-2]) if len(suffixes) == 2 else None
        return None if found == "parquet" else found
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def read_texts(path: Path, stream: BinaryIO, text_column: str) -> Iterator[FileText]:
    """Yield the documents of a file in order.

    Args:
        path: decides the format, and is named in error messages.
        stream: the file, opened for reading bytes.
        text_column: field or column that holds the text in JSON Lines and Parquet.

    Raises:
        CoCoMixError: the file is binary, truncated, broken, or lacks the column.
    """
    kind = file_format(path)
    if kind == "parquet":
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        return (
            FileText(text, last=True, invalid=invalid, position=int(size * share))
            for text, invalid, share in parquet_texts(path, stream, text_column)
        )
    chunks = _without_nul(path, _decompressed(path, stream))
    texts = _plain_texts(path, chunks) if kind == "text" else _json_texts(path, chunks, text_column)
    return (replace(text, position=stream.tell()) for text in texts)


def pieces(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text into pieces of at most `limit` characters whose concatenation is the text.

    A cut lies before a blank line that follows a letter or digit, else before white space after a word, else anywhere.
    The pre-tokenizers of byte-level BPE end a token at the first two kinds of cut by themselves, so the tokens
    are those of the whole text; other tokenizers may differ in one token at a cut.
    """
    start = 0
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


# ---- bytes ---------------------------------------------------------------------------------------------------------


def _decompressed(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    suffix = path.suffix.lower()
    try:
        if suffix == ".gz":
            with gzip.GzipFile(fileobj=stream) as unzipped:
                yield from iter(lambda: unzipped.read(_CHUNK_BYTES), b"")
        elif suffix == ".zst":
            yield from _zstandard_chunks(stream)
        else:
            yield from iter(lambda: stream.read(_CHUNK_BYTES), b"")
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise CoCoMixError(f"{path} is truncated or damaged ({error}); fetch or compress it again.") from error


def _zstandard_chunks(stream: BinaryIO) -> Iterator[bytes]:
    frame = None
    while chunk := stream.read(_CHUNK_BYTES // 4):
        while chunk:
            if frame is None:
                frame = zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("the last frame has no end")


def _without_nul(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        if b"\0" in chunk:
            raise CoCoMixError(f"{path} is not a UTF-8 text file (it has NUL bytes); convert it or leave it out.")
        yield chunk


# ---- plain text ----------------------------------------------------------------------------------------------------


def _plain_texts(path: Path, chunks: Iterator[bytes]) -> Iterator[FileText]:
    """One document, in pieces. Each piece is decoded apart from the incomplete character its bytes may end in."""
    data, text, invalid, first = b"", "", 0, True
    for chunk in chunks:
        data += chunk
        if first and len(data) >= 3:
            data, first = data.removeprefix(b"\xef\xbb\xbf"), False
        end = _complete_end(data)
        decoded, replaced = decode(path, data[:end])
        data, text, invalid = data[end:], text + decoded, invalid + replaced
        while len(text) > 2 * PIECE_CHARACTERS:
            piece = next(pieces(text))
            yield FileText(piece, last=False, invalid=invalid, position=0)
            text, invalid = text[len(piece) :], 0
    decoded, replaced = decode(path, data)
    yield FileText(text + decoded, last=True, invalid=invalid + replaced, position=0)


def _complete_end(data: bytes) -> int:
    """Where to cut bytes so that no UTF-8 character (at most 4 bytes) is cut in two."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:  # first byte of a character of several
            return len(data) - back
        if byte < 0x80:
            break
    return len(data)


# ---- JSON Lines ----------------------------------------------------------------------------------------------------


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        for line in rest:
            yield b"".join(parts)
            parts = [line]
    yield b"".join(parts)


def _json_texts(path: Path, chunks: Iterator[bytes], text_column: str) -> Iterator[FileText]:
    for number, line in enumerate(_lines(chunks), start=1):
        where = f"{path}:{number}"
        decoded, replaced = decode(path, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        if not decoded or decoded.isspace():
            continue
        row = _json_object(decoded, where)
        if text_column not in row:
            raise CoCoMixError(
                f"{where}: there is no field {text_column!r}; the fields are {', '.join(map(repr, row)) or 'none'}; "
                "choose one with --text-column."
            )
        text, surrogates = text_of(row[text_column], where, text_column)
        yield FileText(text, last=True, invalid=replaced + surrogates, position=0)


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise CoCoMixError(
            f"{where}: this line is not valid JSON ({reason}); the file must hold one JSON object a line."
        ) from error
    if not isinstance(row, dict):
        raise CoCoMixError(
            f"{where}: this line is {json_type(row)}, not a JSON object; write one object a line, such as "
            '{"text": "..."}.'
        )
    return row
