from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocomix.artifacts import file_sha256
from cocomix.data import packing
from cocomix.data.packing import BlockShape, file_plans, pack_file
from cocomix.data.splits import TRAIN, VALIDATION, divide
from tests.data.test_splits import members, sides


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    block_size=st.integers(2, 7),
    per_file=st.integers(1, 4),
    bos=st.sampled_from([None, 7]),
    chunk=st.integers(1, 20),
)
def test_blocks_are_the_tokens_of_a_split_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    block_size: int,
    per_file: int,
    bos: int | None,
    chunk: int,
) -> None:
    """Compared with a list of all tokens."""
    folder = tmp_path_factory.mktemp("packed")
    units = [[f"{unit} {number}" for number in range(size)] for unit, size in enumerate(sizes)]
    found = members(folder, units, 0.4, tokens=5)
    division = divide(found, drawn=False, max_bytes=None, needed=block_size)
    shape = BlockShape(block_size, bos, per_file * block_size)
    every = sides(division, units)
    for split in (TRAIN, VALIDATION):
        plans = file_plans(split, division.members, division.tokens[split], shape)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packing, "_CHUNK_TOKENS", chunk)
            entries = [pack_file(folder, shape, plan, lambda amount: None, lambda: None) for plan in plans]
        flat = [token for texts in units for text in texts if every[text] == {split} for token in (1, 1, 1, 1, 0)]
        begin = [] if bos is None else [bos]
        wanted = [
            begin + flat[start : start + shape.taken] for start in range(0, len(flat) - shape.taken + 1, shape.taken)
        ]
        rows = [row for plan in plans for row in np.load(folder / plan.name).reshape(-1, block_size).tolist()]
        assert rows == wanted
        assert [plan.blocks for plan in plans[:-1]] == [per_file] * (len(plans) - 1)
        for plan, entry in zip(plans, entries, strict=True):
            assert (entry.size, entry.sha256) == ((folder / plan.name).stat().st_size, file_sha256(folder / plan.name))


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    division = divide(members(tmp_path, [["a", "b", "c"]], 0.5), drawn=False, max_bytes=None, needed=2)
    (plan, *_) = file_plans(TRAIN, division.members, division.tokens[TRAIN], BlockShape(2, None, 100))
    first = pack_file(tmp_path, BlockShape(2, None, 100), plan, lambda amount: None, lambda: None)
    plan.members[0].log.tokens_path.unlink()
    assert pack_file(tmp_path, BlockShape(2, None, 100), plan, lambda amount: None, lambda: None) == first


def test_what_is_interrupted_leaves_no_file(tmp_path: Path) -> None:
    division = divide(members(tmp_path, [["a", "b", "c"]], 0.5), drawn=False, max_bytes=None, needed=2)
    (plan, *_) = file_plans(TRAIN, division.members, division.tokens[TRAIN], BlockShape(2, None, 100))

    def stop() -> None:
        raise KeyboardInterrupt

    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        pack_file(tmp_path, BlockShape(2, None, 100), plan, lambda amount: None, stop)
    assert set(tmp_path.iterdir()) == before
