"""Which bytes of a text each token stands for: what tokens of two tokenizers are aligned by (method.md section 14)."""

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from cocomix.runtime.byte_level import bytes_of, plain_encoder
from cocomix.runtime.errors import CoCoMixError

_PROBES = (
    "The quick brown fox, it's 1984.\n\n\tdef f(x_1): return {'a': x}  # two  spaces ",
    "Ünïcödé naïve ﬁ straße Ελληνικά Русский עברית हिन्दी 中文、日本語 한국어 🙂👩‍👩‍👧 nb\u00a0space",
)
"""Texts that a tokenizer must give back byte for byte before its tokens are aligned."""


class TokenBytes:
    """The bytes of every token of a tokenizer that can be inverted to bytes exactly.

    Byte-level BPE spells every byte as one character of a fixed alphabet. SentencePiece with byte fallback spells a
    space as "▁" and a byte that is in no piece as "<0xE2>". Special tokens (begin, end, padding) stand for no bytes. A
    tokenizer that normalizes text stands for the bytes of the normalized text.

    Raises:
        CoCoMixError: tokens do not say which bytes they stand for (WordPiece, Unigram without byte fallback, …).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
        backend = tokenizer.backend_tokenizer
        description = json.loads(backend.to_str())
        spelling = _spelling(description)
        if spelling is None:
            decoder = (description.get("decoder") or {}).get("type", "no decoder")
            raise CoCoMixError(
                f"the tokenizer {name} ({description['model']['type']}, {decoder}) does not say which bytes its tokens "
                "stand for; only those of a byte-level BPE or of SentencePiece with byte fallback can be aligned with "
                "tokens of another tokenizer."
            )
        added = dict(tokenizer.added_tokens_decoder)
        size = max(max(tokenizer.get_vocab().values()) + 1, max(added, default=0) + 1)
        self._bytes: list[bytes] = [b""] * size
        for piece, number in tokenizer.get_vocab().items():
            if number in added:
                self._bytes[number] = b"" if added[number].special else added[number].content.encode()
            else:
                self._bytes[number] = spelling(piece)
        self._lengths = np.array([len(piece) for piece in self._bytes], dtype=np.int64)
        # Whether a text's first token begins with a space that is not in the text (SentencePiece's dummy prefix).
        self.adds_space = self.of(backend.encode("a", add_special_tokens=False).ids).startswith(b" ")
        self._check(backend, tokenizer, name)

    def __len__(self) -> int:
        return len(self._bytes)

    def of(self, tokens: Sequence[int] | NDArray[Any]) -> bytes:
        """The bytes that some tokens stand for together."""
        return b"".join(self._bytes[token] for token in tokens)

    def ends(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """At which byte each token ends, counted from the first token's beginning. [n] to [n]"""
        ends: NDArray[np.int64] = np.cumsum(self._lengths[tokens])
        return ends

    def _check(self, backend: Tokenizer, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
        for text in _PROBES:
            ids = backend.encode(text, add_special_tokens=False).ids
            found = self.of(ids).removeprefix(b" " if self.adds_space else b"")
            normalized = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            if found != text.encode() and found != normalized.encode():
                raise CoCoMixError(
                    f"the tokenizer {name} cannot be inverted to bytes: the bytes of its tokens for {text[:20]!r}… are "
                    f"not those of the text it decodes them to ({normalized[:20]!r}…); choose a teacher with the "
                    "data's own tokenizer, or prepare the data with a byte-level one."
                )


class TokenEnds:
    """The tokens of a text in another tokenizer, and the byte of the text at which each ends."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
        self.tokenizer = tokenizer
        self._encoder = plain_encoder(tokenizer)
        try:
            self._bytes: TokenBytes | None = TokenBytes(tokenizer, name)
        except CoCoMixError:
            self._bytes = None  # its offsets in characters say where tokens end

    def encode(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """Tokens of a text without special tokens, and the UTF-8 byte of the text at which each ends. [n], [n]

        Where the tokens' bytes are the text's, they are counted. Otherwise (a normalizing tokenizer, WordPiece) the
        tokenizer's own offsets are used. They are in characters, and some tokenizers leave the spaces around a token
        out of them; so a token is taken to end where the next begins, which is never too early: a label must not come
        from a state that has read beyond it.
        """
        encoding = self._encoder.encode(text, add_special_tokens=False)
        data = text.encode()
        if self._bytes is not None and len(encoding.ids):
            ends = self._bytes.ends(np.array(encoding.ids, dtype=np.int64))
            added = int(self._bytes.adds_space) * int(ends[-1] == len(data) + 1)
            if ends[-1] == len(data) + added and self._bytes.of(encoding.ids)[added:] == data:
                return encoding.ids, np.maximum(ends - added, 0)
        characters = np.zeros(len(text) + 1, dtype=np.int64)
        np.cumsum([len(character.encode()) for character in text], out=characters[1:])
        starts = [start for start, _ in encoding.offsets[1:]] + [len(text)]
        last = np.maximum([end for _, end in encoding.offsets], starts)
        return encoding.ids, characters[np.maximum.accumulate(last)] if len(last) else np.zeros(0, dtype=np.int64)


def _spelling(description: dict[str, Any]) -> Any:
    """The function from a piece's spelling to its bytes; `None` for a tokenizer without one."""
    decoder = description.get("decoder") or {}
    parts = decoder.get("decoders", [decoder])
    kinds = {part.get("type") for part in parts}
    if "ByteLevel" in kinds:
        return bytes_of
    spaces = "Metaspace" in kinds or any(
        part.get("type") == "Replace" and part.get("content") == " " and part.get("pattern") == {"String": "▁"}
        for part in parts
    )
    return _sentence_piece if spaces and description["model"].get("byte_fallback") else None


def _sentence_piece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


def readable_text(data: bytes, *, substitute: bool = False) -> str:
    """The text up to the first bytes that are no character; at a block's edge, those of a character that is cut.

    With `substitute`, for text that a model wrote, each byte within it that is of no character is the control character
    SUBSTITUTE, of one byte too, and only a character that is cut at the end is left out.
    """
    if substitute:
        text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(data)
        return re.sub("[\udc80-\udcff]", "\x1a", text)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].decode()


_BEFORE = ("\n", "a", ".", "1")
"""Texts to put before a token for tokenizers that add a space to a text's beginning; one of them does not merge with
it."""


def student_pieces(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> list[tuple[int, ...]]:
    """What the student's tokenizer splits each of the teacher's tokens into, in the middle of a text.

        teacher's tokens   " whit"     " white"        " whitehouse"          " green"
        the student's      (" whi|t")  (" whi|te")     (" whi|te|house")      (" green")

    What follows in a text may change a split, which the table cannot know: it is exact up to that.

    No pieces have special tokens and those that begin with a part of a character: what the student makes of it depends
    on the bytes that follow. A token that ends within a character counts up to it. The teacher's end-of-document token
    has the student's.

    Returns:
        As many as the teacher has tokens.

    Raises:
        CoCoMixError: the teacher's tokenizer cannot be inverted to bytes.
    """
    spelled, ends = TokenBytes(teacher, "of the teacher"), TokenEnds(student, "of the data")
    before = _BEFORE if TokenBytes(student, "of the data").adds_space else ("",)
    texts = (readable_text(spelled.of([token])) for token in range(len(spelled)))
    pieces = [_pieces(ends, text, before) if text else () for text in texts]
    if teacher.eos_token_id is not None and student.eos_token_id is not None:
        pieces[teacher.eos_token_id] = (student.eos_token_id,)
    return pieces


def _pieces(ends: TokenEnds, text: str, before: tuple[str, ...]) -> tuple[int, ...]:
    for lead in before:
        ids, stops = ends.encode(lead + text)
        place = int(np.searchsorted(stops, len(lead.encode()), side="right"))
        if (not lead or (place > 0 and stops[place - 1] == len(lead.encode()))) and place < len(ids):
            return tuple(ids[place:])
    return ()
