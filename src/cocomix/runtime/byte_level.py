"""The alphabet of byte-level BPE, in which GPT-2's tokenizer and its kin write bytes as characters; texts as tokens."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))  # these stand for themselves
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))  # these are written from U+0100 on
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + place): byte for place, byte in enumerate(_OTHERS)}


def bytes_of(piece: str) -> bytes:
    """The bytes that a token's spelling stands for; its UTF-8 where it is not written in the alphabet."""
    return bytes(map(_BYTES.__getitem__, piece)) if _BYTES.keys() >= set(piece) else piece.encode()


def plain_encoder(tokenizer: "PreTrainedTokenizerFast | Path") -> Tokenizer:
    """A copy of a tokenizer, or of one in a folder, that encodes text as text.

    It adds no special tokens, truncates and pads nothing, and reads the name of a special token that happens to stand
    in a document (such as "<|endoftext|>") as the characters it is written with.
    """
    if isinstance(tokenizer, Path):
        encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    else:
        encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder
