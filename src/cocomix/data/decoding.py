"""From bytes and values to text: what is not UTF-8 becomes U+FFFD and is counted, what is no text is refused."""

import re
from pathlib import Path

from cocomix.runtime.errors import CoCoMixError

__all__ = ["decode", "json_type", "text_of"]

_MAX_REPLACED_SHARE = 0.1
_SURROGATE = re.compile("[\ud800-\udfff]")


def text_of(value: object, where: str, text_column: str) -> tuple[str, int]:
    """Check that a value is a text; lone surrogates, which have no UTF-8 form, become U+FFFD and are counted."""
    if not isinstance(value, str):
        raise CoCoMixError(
            f"{where}: {text_column!r} holds {json_type(value)}, not text; name the column of the text with "
            "--text-column, or remove the row."
        )
    if value.isascii():
        return value, 0
    return _SURROGATE.subn("�", value)


def decode(path: Path | str, data: bytes) -> tuple[str, int]:
    """Decode UTF-8 with replacement; also return how many characters were put in for bytes that are not UTF-8."""
    try:
        return data.decode("utf-8"), 0
    except UnicodeDecodeError:
        text = data.decode("utf-8", errors="replace")
    invalid = text.count("�") - data.count("�".encode())
    if invalid > max(16, _MAX_REPLACED_SHARE * len(text)):
        raise CoCoMixError(
            f"{path} is not a UTF-8 text file ({invalid:,} of {len(text):,} characters cannot be decoded); "
            "convert it to UTF-8 or leave it out."
        )
    return text, invalid


def json_type(value: object) -> str:
    """What a JSON value is, in words."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
