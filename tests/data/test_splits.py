from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocomix.data.documents import Document
from cocomix.data.splits import TRAIN, VALIDATION, assign_splits, split_draw


def assigned(numbers: Iterable[int], fraction: float, seed: int = 0) -> dict[int, str]:
    documents = (Document(f"text {number}", "s", number) for number in numbers)
    return {document.number: split for split, document in assign_splits(documents, fraction, seed)}


def test_the_share_is_about_the_fraction() -> None:
    splits = assigned(range(5000), 0.1)
    share = sum(split == VALIDATION for split in splits.values()) / 5000
    assert share == pytest.approx(0.1, abs=0.02)


def test_the_split_is_the_draw_and_nothing_else() -> None:
    splits = assigned(range(3000), 0.05, seed=3)
    assert splits == {n: VALIDATION if split_draw(3, n) < 0.05 else TRAIN for n in range(3000)}
    assert splits != assigned(range(3000), 0.05, seed=4)


@given(count=st.integers(2, 60), fraction=st.floats(0.001, 0.999), seed=st.integers(0, 1000))
def test_both_splits_have_a_document(count: int, fraction: float, seed: int) -> None:
    splits = assigned(range(count), fraction, seed)
    assert set(splits) == set(range(count))
    assert set(splits.values()) == {TRAIN, VALIDATION}


def test_order_is_kept_and_pieces_stay_together() -> None:
    pieces = [Document("x", "s", number, last=part == 2) for number in range(1500) for part in range(3)]
    found = list(assign_splits(iter(pieces), 0.3, 0))
    assert [document for _, document in found] == pieces
    splits: dict[int, set[str]] = {}
    for split, document in found:
        splits.setdefault(document.number, set()).add(split)
    assert all(len(names) == 1 for names in splits.values())


def test_a_single_document_trains_or_validates_and_none_is_fine() -> None:
    assert assigned([0], 0.001) == {0: TRAIN}
    assert assigned([], 0.5) == {}
