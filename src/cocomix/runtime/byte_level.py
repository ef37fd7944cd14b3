"""The alphabet of byte-level BPE, in which GPT-2's tokenizer and its kin write bytes as characters."""

_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))  # these stand for themselves
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))  # these are written from U+0100 on
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + place): byte for place, byte in enumerate(_OTHERS)}


def bytes_of(piece: str) -> bytes:
    """The bytes that a token's spelling stands for; its UTF-8 where it is not written in the alphabet."""
    return bytes(map(_BYTES.__getitem__, piece)) if _BYTES.keys() >= set(piece) else piece.encode()
