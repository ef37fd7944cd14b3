"""From bytes and values to text: what is not UTF-8 becomes U+FFFD and is counted, what is no text is refused.

Bytes are decoded with `surrogateescape`, so that bytes that are not UTF-8 and lone surrogates, which JSON can spell,
are the same thing when `clean_text` looks.
"""

import re

from cocomix.runtime.errors import CoCoMixError

__all__ = ["clean_text", "text_of"]

_MAX_INVALID_SHARE = 0.1
_INVALID = re.compile("[\ud800-\udfff]")


def clean_text(text: str, where: str) -> tuple[str, int]:
    """The text with U+FFFD for what has no UTF-8 form, and how often that was put in.

    Raises:
        CoCoMixError: there is so much of it that the file is no UTF-8 text.
    """
    if text.isascii():
        return text, 0
    text, invalid = _INVALID.subn("\ufffd", text)
    if invalid > max(16, _MAX_INVALID_SHARE * len(text)):
        raise CoCoMixError(
            f"{where} is not a UTF-8 text file ({invalid:,} of {len(text):,} characters cannot be decoded); "
            "convert it to UTF-8 or leave it out."
        )
    return text, invalid


def text_of(value: object, text_column: str) -> str:
    """`value`, if it is a text.

    Raises:
        CoCoMixError: it is none; the message begins with the column, for the caller to say where.
    """
    if isinstance(value, str):
        return value
    raise CoCoMixError(
        f"{text_column!r} holds {_json_type(value)}, not text; name the column of the text with --text-column, or "
        "remove the row."
    )


def _json_type(value: object) -> str:
    """What a JSON value is, in words."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
