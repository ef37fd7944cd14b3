"""Which document trains and which validates: a pure function of the seed and the document's number."""

import hashlib
from collections import deque
from collections.abc import Iterator

from cocomix.data.documents import Document

__all__ = ["TRAIN", "VALIDATION", "assign_splits", "split_draw"]

TRAIN = "train"
VALIDATION = "validation"

HEAD_CHARACTERS = 16_000_000
"""How far `assign_splits` looks ahead at most, unless told otherwise (our choice; a few times that in memory)."""


def split_draw(seed: int, number: int) -> float:
    """A number in [0, 1), uniform over document numbers: the document validates where it is below the fraction."""
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(
    documents: Iterator[Document], fraction: float, seed: int, head_characters: int = HEAD_CHARACTERS
) -> Iterator[tuple[str, Document]]:
    """Pair every document with its split.

    Where the draw leaves one split without a document in the head of the stream, the document that came nearest is
    moved to it, so that a small corpus has both splits as soon as it has two documents.

    Args:
        documents: the stream; all pieces of a document get the same split.
        fraction: expected share of documents that validate, in (0, 1).
        seed: another seed draws another validation split.
        head_characters: how much text belongs to the head; it is held in memory until both splits have a document.
    """
    head: deque[Document] = deque()
    draws: dict[int, float] = {}
    lowest, highest, characters = 1.0, 0.0, 0
    for document in documents:
        head.append(document)
        draw = draws[document.number] = split_draw(seed, document.number)
        lowest, highest = min(lowest, draw), max(highest, draw)
        characters += len(document.text)
        if characters >= head_characters or lowest < fraction <= highest:
            break
    moved = _moved(draws, fraction)

    def split(number: int) -> str:
        return moved.get(number) or (VALIDATION if split_draw(seed, number) < fraction else TRAIN)

    while head:
        document = head.popleft()
        yield split(document.number), document
    for document in documents:
        yield split(document.number), document


def _moved(draws: dict[int, float], fraction: float) -> dict[int, str]:
    if len(draws) < 2:
        return {}
    lowest, highest = min(draws, key=draws.__getitem__), max(draws, key=draws.__getitem__)
    if draws[lowest] >= fraction:
        return {lowest: VALIDATION}
    if draws[highest] < fraction:
        return {highest: TRAIN}
    return {}
