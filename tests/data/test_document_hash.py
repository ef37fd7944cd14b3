import numpy as np
import pytest

from cocomix.data.splits import DocumentHash, draws_of, threshold_of


def hash_of(*pieces: str) -> int:
    found = DocumentHash()
    for piece in pieces:
        found.update(piece.encode())
    return found.value()


def test_a_hash_is_of_the_whole_content_however_it_is_cut() -> None:
    assert hash_of("one ", "two") == hash_of("one two") != hash_of("one two ")


def test_the_share_below_a_threshold_is_about_the_fraction() -> None:
    hashes = np.array([hash_of(str(number)) for number in range(5000)], dtype="<u8")
    for fraction in (0.1, 0.5, 0.9):
        share = (draws_of(hashes, 0) < threshold_of(fraction)).mean()
        assert share == pytest.approx(fraction, abs=0.03)
    assert (draws_of(hashes, 0) != draws_of(hashes, 1)).all()
