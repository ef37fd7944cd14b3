"""Texts out of Parquet files, a small batch of rows at a time: of a whole file, or of one row group."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.data.decoding import decode, text_of
from cocomix.runtime.errors import CoCoMixError

__all__ = ["ROWS", "open_parquet", "parquet_texts", "row_batches", "row_text"]

ROWS = 64
"""Rows decoded at once (our choice: what they hold stays small beside a model)."""
_BUFFER_BYTES = 1 << 20


def open_parquet(where: Path | str, stream: BinaryIO, text_column: str) -> pq.ParquetFile:
    """Read a file's footer and see that it has the column, and that this holds text.

    Args:
        where: names the file in errors.
        stream: the file, opened for reading bytes; must stay open.
        text_column: holds the text.

    Raises:
        CoCoMixError: it is no Parquet file, is truncated, or lacks the column.
    """
    try:
        file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
        schema = file.schema_arrow
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _unreadable(where, error) from error
    if text_column not in schema.names:
        raise CoCoMixError(
            f"{where}: there is no column {text_column!r}; the columns are {', '.join(map(repr, schema.names))}; "
            "choose one with --text-column (in a recipe text_column)."
        )
    if not _is_text(schema.field(text_column).type):
        raise CoCoMixError(
            f"{where}: column {text_column!r} holds {schema.field(text_column).type}, not text; choose another "
            "with --text-column (in a recipe text_column)."
        )
    return file


def row_batches(
    where: Path | str, file: pq.ParquetFile, text_column: str, row_groups: Sequence[int] | None = None
) -> Iterator[list[bytes | None]]:
    """The column's values, undecoded, some rows at a time.

    Args:
        where: names the file in errors.
        file: from `open_parquet`.
        text_column: holds the text.
        row_groups: read only these; all by default.

    Raises:
        CoCoMixError: the rows cannot be read.
    """
    batches = file.iter_batches(batch_size=ROWS, row_groups=row_groups, columns=[text_column], use_threads=False)
    try:
        for batch in batches:
            yield batch.column(0).cast(pa.large_binary()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _unreadable(where, error) from error


def parquet_texts(path: Path, stream: BinaryIO, text_column: str) -> Iterator[tuple[str, int, float]]:
    """Every row of a file: its text, the characters that stand for invalid bytes, and the share of the file read.

    Raises:
        CoCoMixError: as `open_parquet` and `row_batches`; a row holds no text.
    """
    file = open_parquet(path, stream, text_column)
    number = 0
    for batch in row_batches(path, file, text_column):
        for value in batch:
            number += 1
            text, invalid = row_text(path, number, value, text_column)
            yield text, invalid, number / file.metadata.num_rows


def row_text(where: Path | str, number: int, value: bytes | None, text_column: str) -> tuple[str, int]:
    """One row's text, and the characters of it that stand for invalid bytes.

    Raises:
        CoCoMixError: it holds none, or too much of it is not UTF-8.
    """
    if value is None:
        return text_of(value, f"{where}, row {number}", text_column)
    return decode(where, value)


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _unreadable(where: Path | str, error: Exception) -> CoCoMixError:
    reason = str(error).splitlines()[0].rstrip(". ") if str(error) else type(error).__name__
    return CoCoMixError(f"{where} is not a readable Parquet file ({reason}); fetch it again.")
