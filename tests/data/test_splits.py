from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocomix.data.splits import ALL, TRAIN, VALIDATION, Division, DocumentHash, Member, divide, draws_of, threshold_of
from cocomix.data.unit_log import UnitLog

DTYPE = np.dtype("<u2")


def write_log(path: Path, documents: list[tuple[str, list[int]]]) -> UnitLog:
    """A finished unit: text and tokens of its documents."""
    with UnitLog(path, DTYPE) as log:
        rows = []
        for text, _ in documents:
            found = DocumentHash()
            found.update(text.encode())
            rows.append((found.value(), len(text), 0, True))
        if documents:
            log.append([np.array(tokens, dtype=DTYPE) for _, tokens in documents], rows)
        log.finish()
    return log


def members(folder: Path, units: list[list[str]], fraction: float, tokens: int = 3, seed: int = 0) -> list[Member]:
    logs = [
        write_log(folder / str(number), [(text, [1] * (tokens - 1) + [0]) for text in texts])
        for number, texts in enumerate(units)
    ]
    return [Member(log, number, threshold_of(fraction), seed) for number, log in enumerate(logs)]


def sides(found: Division, units: list[list[str]]) -> dict[str, set[str]]:
    """Every text and the splits it is in."""
    result: dict[str, set[str]] = {}
    for member in found.members:
        texts = units[member.source] if member.source < len(units) else []
        for text, validates in zip(texts, member.documents().validates, strict=False):
            result.setdefault(text, set()).add(VALIDATION if validates else TRAIN)
    return result


def test_copies_are_on_one_side_and_more_files_move_nothing(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(300)]
    before = sides(divide(members(tmp_path, [texts], 0.2), drawn=True, max_bytes=None, needed=4), [texts])
    units = [[f"new {number}" for number in range(50)], texts[::-1], texts[:40]]
    (tmp_path / "more").mkdir()
    after = sides(divide(members(tmp_path / "more", units, 0.2), drawn=True, max_bytes=None, needed=4), units)
    assert all(len(found) == 1 for found in after.values())
    assert {text: after[text] for text in texts} == before
    assert {split for found in before.values() for split in found} == {TRAIN, VALIDATION}


@given(count=st.integers(4, 40), fraction=st.floats(0.001, 0.999), seed=st.integers(0, 1000))
def test_both_splits_have_a_block(
    tmp_path_factory: pytest.TempPathFactory, count: int, fraction: float, seed: int
) -> None:
    units = [[f"text {number}" for number in range(count)]]
    found = members(tmp_path_factory.mktemp("units"), units, fraction, tokens=3, seed=seed)
    division = divide(found, drawn=True, max_bytes=None, needed=4)
    assert sum(division.documents.values()) == count
    assert all(sum(division.tokens[split]) >= 4 for split in (TRAIN, VALIDATION))


def test_counts_are_those_of_the_documents(tmp_path: Path) -> None:
    units = [["aa", "b"], [], ["ccc"] * 3]
    division = divide(members(tmp_path, units, 0.5), drawn=False, max_bytes=None, needed=4)
    assert sum(division.documents.values()) == 5
    assert sum(division.bytes.values()) == 2 + 1 + 9
    assert (division.source_documents[0], division.source_documents[1], division.source_documents[2]) == (2, 0, 3)
    assert [sum(pair) for pair in zip(*division.tokens.values(), strict=True)] == [6, 0, 9]


def test_max_bytes_ends_with_the_training_document_that_reaches_it(tmp_path: Path) -> None:
    units = [[f"{number:04d}" for number in range(start, start + 100)] for start in (0, 100, 200)]
    found = members(tmp_path, units, 0.3)
    division = divide([*found, Member(found[0].log, 9, ALL, 0)], drawn=False, max_bytes=403, needed=4)
    assert division.bytes[TRAIN] == 404
    every = sides(divide(found, drawn=False, max_bytes=None, needed=4), units)
    training = [text for texts in units for text in texts if every[text] == {TRAIN}]
    taken = sides(division, units)
    assert [text for text in training if text in taken] == training[:101]
    assert division.source_documents[9] == 100  # sources of the validation split are read whole


def test_held_out_documents_are_known_and_looked_for_in_training(tmp_path: Path) -> None:
    train = write_log(tmp_path / "a", [("same", [1, 0]), ("other", [1, 0])])
    heldout = write_log(tmp_path / "b", [("same", [1, 0]), ("same", [1, 0]), ("third", [1, 0])])
    division = divide([Member(train, 0, 0, 0), Member(heldout, 1, ALL, 0)], drawn=False, max_bytes=None, needed=2)
    assert division.both == 1
    assert len(division.heldout) == 2
    assert division.documents == {TRAIN: 2, VALIDATION: 3}
    assert (draws_of(division.heldout, 0) < ALL).all()
