"""Token files of other code: their tokens, the ends of their documents, and the texts these stand for.

    .bin          nanoGPT and the released CoCoMix code: flat uint16; llm.c: the same after a header of 1 KiB
    .bin + .idx   Megatron-LM: types and ends of documents in the index
    .ds           datatrove: flat, ends of documents in `.ds.index`
    .npy          OLMo: flat without a header; or a real `.npy` array

Where there is no index, a document ends with the tokenizer's end-of-document token. Files are read through memory maps.
"""

import json
from collections.abc import Iterator
from functools import cached_property, lru_cache
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cocomix.runtime.byte_level import bytes_of
from cocomix.runtime.errors import CoCoMixError

logger = getLogger(__name__)

_CHUNK = 2**22
_SAMPLE = 2**20
_TELLING = 64  # so many tokens tell their type: fewer may have zeros between them by chance
_MEGATRON_MAGIC = b"MMIDIDX"  # and two zero bytes, which NumPy leaves out
_MEGATRON_TYPES = {3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_LLM_C = {20240520: "<u2", 20240801: "<u4"}  # magic numbers of llm.c's files, and the types of their tokens


class _File(NamedTuple):
    tokens: NDArray[Any]
    ends: NDArray[np.int64] | None  # of documents, in tokens; `None` where the end-of-document token tells


class TokenFiles:
    """Reads token files made with the tokenizer in a folder; `dtype` is of those that do not say it, None to tell."""

    def __init__(self, tokenizer: Path, eos_token_id: int, dtype: str | None) -> None:
        self.eos_token_id, self.dtype = eos_token_id, dtype
        self._tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def ranges(self, where: str, target: int) -> Iterator[tuple[int, int, int]]:
        """Cut a file into ranges of about `target` bytes: first token, one past the last, bytes.

        The documents of a range are those that begin in it.
        """
        file = self._open(where)
        count, width = len(file.tokens), file.tokens.dtype.itemsize
        if file.ends is None and not (np.asarray(file.tokens[:_CHUNK]) == self.eos_token_id).any():
            logger.warning("%s has no end-of-document token (%s): was it made with this one?", where, self.eos_token_id)
        step = max(1, target // width)
        for start in range(0, count, step):
            stop = min(start + step, count)
            yield start, stop, (stop - start) * width

    def documents(self, where: str, start: int, stop: int) -> Iterator[tuple[NDArray[Any], bytes, bool, int]]:
        """Documents that begin in a range, long ones in pieces; their tokens are those of the file.

        Yields:
            Tokens with the end-of-document token, which is added where only the index tells of an end; the text, UTF-8;
            whether the document ends; bytes read.
        """
        file = self._open(where)
        for begin, end, last in self._pieces(where, file, self._first_document(where, file, start), stop):
            tokens = np.asarray(file.tokens[begin:end])
            ended = bool(last and len(tokens) and tokens[-1] == self.eos_token_id)
            text = self._text(tokens[:-1] if ended else tokens)
            add_end = last and not ended and file.ends is not None
            yield np.append(tokens, self.eos_token_id) if add_end else tokens, text, last, tokens.nbytes

    def _pieces(self, where: str, file: _File, at: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """First token, one past the last token, and whether the document ends there."""
        begins = True
        while at < len(file.tokens) and not (begins and at >= stop):
            reach = min(at + _CHUNK, len(file.tokens))
            for end in self._ends(where, file, at, reach).tolist():
                yield at, end, True
                at, begins = end, True
                if at >= stop:
                    return
            if at < reach:
                yield at, reach, reach == len(file.tokens)
                at, begins = reach, False

    def _first_document(self, where: str, file: _File, start: int) -> int:
        for at in range(start - 1, len(file.tokens), _CHUNK) if start else ():
            ends = self._ends(where, file, at, min(at + _CHUNK, len(file.tokens)))
            if len(ends):
                return int(ends[0])
        return len(file.tokens) if start else 0

    def _ends(self, where: str, file: _File, start: int, stop: int) -> NDArray[np.int64]:
        """Ends of documents after token `start`, up to `stop`."""
        chunk = np.asarray(file.tokens[start:stop])
        if int(chunk.max()) >= self.vocab_size or int(chunk.min()) < 0:
            place = int(chunk.argmax()) if int(chunk.max()) >= self.vocab_size else int(chunk.argmin())
            raise CoCoMixError(
                f"{where} holds token {chunk[place]} at place {start + place:,}, read as {chunk.dtype}, and the "
                f"tokenizer has {self.vocab_size:,} tokens; give the one the file was made with, or --token-dtype."
            )
        if file.ends is None:
            return np.flatnonzero(chunk == self.eos_token_id) + start + 1
        first, last = np.searchsorted(file.ends, [start, stop], side="right")
        return file.ends[first:last]

    def _text(self, tokens: NDArray[Any]) -> bytes:
        if self._bytes is None:
            text: str = self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
            return text.encode()
        return b"".join(map(self._bytes.__getitem__, tokens.tolist()))

    @cached_property
    def _bytes(self) -> list[bytes] | None:
        """The bytes of every token, where the tokenizer is a byte-level BPE: it writes each byte as a character."""
        if (json.loads(self._tokenizer.to_str()).get("decoder") or {}).get("type") != "ByteLevel":
            return None
        table = [b""] * self.vocab_size
        added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            table[number] = token.encode() if token in added else bytes_of(token)
        return table

    def _open(self, where: str) -> _File:
        try:
            return self._opened(Path(where))
        except OSError as error:
            raise CoCoMixError(f"cannot read {where}: {error.strerror}; check the path and its permissions.") from error

    def _opened(self, path: Path) -> _File:
        index = path.with_suffix(".idx") if path.suffix == ".bin" else path.with_name(f"{path.name}.index")
        with path.open("rb") as stream:
            head = stream.read(1024)
        if path.suffix == ".bin" and index.is_file():
            return _megatron(path, index)
        if head.startswith(b"\x93NUMPY"):
            return _numpy(path)
        magic = int.from_bytes(head[:4], "little")
        if len(head) == 1024 and magic in _LLM_C and path.suffix == ".bin":
            return _File(_flat(path, np.dtype(_LLM_C[magic]), 1024), None)
        tokens = _flat(path, self._dtype_of(path), 0)
        if not index.is_file():
            return _File(tokens, None)
        ends = np.fromfile(index, dtype="<u8").astype(np.int64)
        return _File(tokens, _checked_ends(ends, len(tokens), index))

    def _dtype_of(self, path: Path) -> np.dtype[Any]:
        """The type of a file's tokens: the widest in which a sample of both ends has tokens of the tokenizer only.

        A narrower file read as a wider type has tokens far beyond every vocabulary, as two tokens become one; a wider
        file read as a narrower type has zeros between its tokens, which no text has.
        """
        size, found = path.stat().st_size, np.dtype("<u2") if self.vocab_size <= 2**16 else np.dtype("<u4")
        for dtype in map(np.dtype, ("<u4", "<u8")):
            if size >= _TELLING * dtype.itemsize and size % dtype.itemsize == 0:
                tokens = np.memmap(path, dtype=dtype, mode="r")
                if max(tokens[:_SAMPLE].max(), tokens[-_SAMPLE:].max()) < self.vocab_size:
                    found = dtype
        if self.dtype is None:
            return found
        given = np.dtype(self.dtype).newbyteorder("<")
        if given.itemsize < found.itemsize:
            raise CoCoMixError(f"{path} holds {found} by its content, not {given}; leave --token-dtype out.")
        return given


token_files = lru_cache(maxsize=4)(TokenFiles)
"""The reader of a tokenizer's token files, one a process."""


def _flat(path: Path, dtype: np.dtype[Any], offset: int) -> NDArray[Any]:
    size = path.stat().st_size - offset
    if size <= 0 or size % dtype.itemsize:
        raise CoCoMixError(f"{path} has {size:,} bytes, which are no {dtype} tokens; the file is empty or damaged.")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset)


def _numpy(path: Path) -> _File:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise CoCoMixError(f"{path} is a damaged .npy file ({error}); fetch it again.") from error
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise CoCoMixError(
            f"{path} holds {array.dtype} {list(array.shape)}; a file of tokens must hold one row of integers."
        )
    return _File(array, None)


def _megatron(path: Path, index: Path) -> _File:
    """Megatron-LM's indexed data set, version 1."""
    head = np.dtype([("magic", "S9"), ("version", "<u8"), ("type", "u1"), ("sequences", "<u8"), ("documents", "<u8")])
    with index.open("rb") as stream:
        found = np.frombuffer(stream.read(head.itemsize).ljust(head.itemsize, b"\0"), dtype=head)[0]
        known = found["magic"] == _MEGATRON_MAGIC and int(found["type"]) in _MEGATRON_TYPES
        if not known or found["version"] != 1:
            raise CoCoMixError(
                f"{index} is no index of Megatron-LM that is known here; take it away to read {path} alone."
            )
        sizes = np.fromfile(stream, dtype="<i4", count=int(found["sequences"])).astype(np.int64)
        stream.seek(8 * len(sizes), 1)  # where each begins, which follows from the sizes
        documents = np.fromfile(stream, dtype="<i8", count=int(found["documents"]))
    tokens = _flat(path, np.dtype(_MEGATRON_TYPES[int(found["type"])]), 0)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    if len(documents) and not (documents.min() >= 0 and documents.max() < len(starts)):
        raise CoCoMixError(f"{index} is damaged: it names sequences that it does not have; fetch it again.")
    return _File(tokens, _checked_ends(starts[documents[1:]] if len(documents) > 1 else starts[1:], len(tokens), index))


def _checked_ends(ends: NDArray[np.int64], count: int, index: Path) -> NDArray[np.int64]:
    if not len(ends) or (np.diff(ends, prepend=0) < 0).any() or ends[-1] != count:
        raise CoCoMixError(f"{index} does not belong to the tokens beside it: their numbers differ; fetch both again.")
    return ends
