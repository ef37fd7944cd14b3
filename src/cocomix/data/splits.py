"""Dividing the documents of all units between the splits, by a hash of their content and a draw from it.

Both depend on nothing but content and seed. So copies of a document are on one side, and files that are added, taken
away or put in another order move no other document.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cocomix.data.permutation import scrambled
from cocomix.data.unit_log import UnitLog

TRAIN = "train"
VALIDATION = "validation"
ALL = 2**64  # the threshold below which all documents validate


class DocumentHash:
    """The hash of a document, 8 bytes, from the pieces of its text as UTF-8, in order."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=8)

    def update(self, piece: bytes) -> None:
        """Add the next piece."""
        self._digest.update(piece)

    def value(self) -> int:
        """The hash of the pieces so far."""
        return int.from_bytes(self._digest.digest(), "little")


def draws_of(hashes: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A number for every document, uniform below 2^64; documents below `threshold_of` a fraction validate."""
    key = hashlib.blake2b(f"split:{seed}".encode(), digest_size=8).digest()
    return scrambled(hashes ^ np.frombuffer(key, dtype="<u8")[0])


def draw_of(document: int, seed: int) -> int:
    """The number of one document, from its hash."""
    return int(draws_of(np.array([document], dtype="<u8"), seed)[0])


def threshold_of(fraction: float) -> int:
    """The draw from which on documents train where this share of them is to validate."""
    return min(int(fraction * 2**64), 2**64 - 1)


@dataclass(frozen=True)
class Documents:
    """Documents of a unit, in order."""

    ends: NDArray[np.int64]  # tokens of the unit up to the end of each, its end-of-document token included. [documents]
    hashes: NDArray[np.uint64]  # `DocumentHash` of each. [documents]
    bytes: NDArray[np.int64]  # UTF-8 bytes of each. [documents]
    invalid: NDArray[np.int64]  # characters of each that were put in for bytes that were not UTF-8. [documents]
    validates: NDArray[np.bool_]  # whether each goes to the validation split. [documents]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Tokens of each. [documents]"""
        return np.diff(self.ends, prepend=0)


@dataclass(frozen=True)
class Member:
    """What is taken of a unit."""

    log: UnitLog  # its tokens
    source: int  # number of its source
    threshold: int  # documents whose draw is below it validate; 0 for none, `ALL` for all
    seed: int  # of the draws
    first: int | None = None  # only so many of its documents are taken; None for all

    def documents(self) -> Documents:
        """Its documents; the pieces of long ones are put together."""
        rows = self.log.rows()
        last = np.flatnonzero(rows["last"])[: self.first]
        sizes, invalid = (
            np.diff(np.cumsum(rows[name].astype(np.int64))[last], prepend=0) for name in ("bytes", "invalid")
        )
        hashes = rows["hash"][last]
        validates = draws_of(hashes, self.seed) <= np.uint64(max(0, self.threshold - 1))
        return Documents(rows["end"][last].astype(np.int64), hashes, sizes, invalid, validates & (self.threshold > 0))


@dataclass
class Division:
    """Which documents are in which split, and how many."""

    members: tuple[Member, ...]  # the units, in order
    # of every split, in each unit
    tokens: dict[str, list[int]] = field(default_factory=lambda: {TRAIN: [], VALIDATION: []})
    # of every split, as `bytes` of text; and both of every source
    documents: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    source_documents: Counter[int] = field(default_factory=Counter)
    source_bytes: Counter[int] = field(default_factory=Counter)
    invalid: int = 0  # characters put in for bytes that were not UTF-8
    # hashes of the documents that validate, sorted, each once
    heldout: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype="<u8"))
    single: bool = False  # whether all documents are copies of one
    both: int = 0  # training documents that validate, too; only with sources of its own can a split have such


def divide(members: Sequence[Member], *, drawn: bool, max_bytes: int | None, needed: int) -> Division:
    """Divide the documents, so that both splits have a block if that is possible.

    Where the draw leaves a split with less than a block, of `needed` tokens, the documents that came nearest are moved
    to it; if not `drawn`, every unit is of one split. What follows `max_bytes` of training text is left out.
    """
    members = _limited(members, max_bytes)
    division = _counted(members)
    if drawn and any(division.documents.values()):
        for split, order in ((VALIDATION, 1), (TRAIN, -1)):
            if sum(division.tokens[split]) < needed:
                threshold = _moved(members, needed, order)
                division = _counted([replace(member, threshold=threshold) for member in members])
    return division


def _limited(members: Sequence[Member], max_bytes: int | None) -> list[Member]:
    """The units, and the documents of the last one, up to `max_bytes` of training text."""
    if max_bytes is None:
        return list(members)
    taken, left = [], max_bytes
    for member in members:
        documents = member.documents()
        training = np.cumsum(np.where(documents.validates, 0, documents.bytes))
        if member.threshold == ALL or (left > 0 and (not len(training) or training[-1] < left)):
            taken.append(member)
            left -= 0 if member.threshold == ALL or not len(training) else int(training[-1])
        elif left > 0:
            taken.append(replace(member, first=int(np.searchsorted(training, left)) + 1))
            left = 0
    return taken


def _moved(members: Sequence[Member], needed: int, order: int) -> int:
    """The threshold at which the documents of the lowest draws (of the highest, with order −1) fill a block."""
    draws, tokens = [], []
    for member in members:
        documents = member.documents()
        of_unit = draws_of(documents.hashes, member.seed)
        nearest = np.argsort(of_unit)[::order][:needed]  # a document has a token at least
        draws.append(of_unit[nearest])
        tokens.append(documents.tokens[nearest])
    every, sizes = np.concatenate(draws), np.concatenate(tokens)
    ranking = np.argsort(every)[::order]
    enough = int(np.searchsorted(np.cumsum(sizes[ranking]), needed))
    edge = int(every[ranking[min(enough, len(ranking) - 1)]])
    return edge + 1 if order == 1 else edge


def _counted(members: Sequence[Member]) -> Division:
    division = Division(tuple(members))
    heldout, lowest, highest = [division.heldout], ALL, 0
    for member in members:
        found = member.documents()
        for split, inside in ((TRAIN, ~found.validates), (VALIDATION, found.validates)):
            division.tokens[split].append(int(found.tokens[inside].sum()))
            division.documents[split] += int(inside.sum())
            division.bytes[split] += int(found.bytes[inside].sum())
        division.source_documents[member.source] += len(found.ends)
        division.source_bytes[member.source] += int(found.bytes.sum())
        division.invalid += int(found.invalid.sum())
        heldout.append(found.hashes[found.validates])
        if len(found.hashes):
            lowest, highest = min(lowest, int(found.hashes.min())), max(highest, int(found.hashes.max()))
    division.heldout = np.unique(np.concatenate(heldout))
    division.single = lowest == highest
    if any(member.threshold == ALL for member in members):
        training = (member.documents().hashes for member in members if member.threshold != ALL)
        division.both = sum(int(np.isin(hashes, division.heldout).sum()) for hashes in training)
    return division
