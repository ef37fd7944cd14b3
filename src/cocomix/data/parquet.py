"""Rows of Parquet files, a few at a time."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.runtime.errors import CoCoMixError

_ROWS = 64
"""Rows decoded at once (our choice: what they hold stays small beside a model)."""
_BUFFER_BYTES = 1 << 20


def open_parquet(where: str, stream: BinaryIO, text_column: str) -> pq.ParquetFile:
    """Read the footer of a file, named `where`, and see that it has the column; `stream` must stay open.

    Raises:
        CoCoMixError: it is no Parquet file, is truncated, or lacks the column, or this holds no text.
    """
    try:
        file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
        schema = file.schema_arrow
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _unreadable(where, error) from error
    if text_column not in schema.names:
        raise CoCoMixError(
            f"{where}: there is no column {text_column!r}; the columns are {', '.join(map(repr, schema.names))}; "
            "choose one with --text-column."
        )
    if not _is_text(schema.field(text_column).type):
        raise CoCoMixError(
            f"{where}: column {text_column!r} holds {schema.field(text_column).type}, not text; choose another "
            "with --text-column."
        )
    return file


def row_batches(
    where: str, file: pq.ParquetFile, text_column: str, row_groups: Sequence[int]
) -> Iterator[list[bytes | None]]:
    """The column's values in some row groups, undecoded, some rows at a time.

    Raises:
        CoCoMixError: the rows cannot be read.
    """
    batches = file.iter_batches(batch_size=_ROWS, row_groups=row_groups, columns=[text_column], use_threads=False)
    try:
        for batch in batches:
            yield batch.column(0).cast(pa.large_binary()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _unreadable(where, error) from error


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _unreadable(where: str, error: Exception) -> CoCoMixError:
    reason = str(error).splitlines()[0].rstrip(". ") if str(error) else type(error).__name__
    return CoCoMixError(f"{where} is not a readable Parquet file ({reason}); fetch it again.")
