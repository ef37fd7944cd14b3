"""`map_shards` with a toy function: what is stored, resumed, retried, shared, and what is left of a failure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from cocomix.labelling import map_shards as module
from cocomix.labelling.executors import Inline, Processes, SlurmArray
from cocomix.labelling.map_shards import PARTS, PartFolder, Report, map_shards
from cocomix.runtime.errors import CoCoMixError

from .shards import BLOCK, Doubled, toy_shards


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The files that an undisturbed call makes."""
    folder = tmp_path / "whole"
    folder.mkdir()
    report = compute(folder)
    assert not report.left
    return contents(folder)


def compute(folder: Path, *, executor: Any = None, retries: int = 2, **trouble: Any) -> Report:
    function = Doubled(folder.parent / f"{folder.name}-journal", **trouble)
    return map_shards(
        function,
        toy_shards(),
        folders=[PartFolder(folder, {name: name for name in function.columns})],
        executor=executor or Inline(),
        retries=retries,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_every_token_file_gets_its_arrays(folder: Path) -> None:
    report = compute(folder)
    assert (report.tokens, report.failed, report.left) == (10 * BLOCK, {}, [])
    assert set(contents(folder)) == {
        f"{file}.{column}.npy"
        for file in ("train-00000", "train-00001", "validation-00000")
        for column in ("twice", "sums")
    }
    twice = np.load(folder / "train-00000.twice.npy", mmap_mode="r")
    assert twice.dtype == np.uint32
    assert np.array_equal(twice, 2 * np.arange(5 * BLOCK).reshape(5, BLOCK))
    assert np.load(folder / "train-00001.sums.npy").shape == (4,)
    assert not list((folder / PARTS).glob("*/*"))


@pytest.mark.parametrize("first", [0, 20])
def test_ctrl_c_keeps_what_is_finished_and_says_how_much(folder: Path, whole: dict[str, bytes], first: int) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped:
        compute(folder, trouble={first: "interrupt"})
    kept = {0: 0, 20: 4}[first]
    assert any(f"{kept} of 10 blocks are kept in {folder}" in note for note in stopped.value.__notes__)
    journal = folder.parent / "out-journal"
    before = len(list(journal.glob("begun-*")))
    assert before == kept // 2 + 1
    report = compute(folder)
    assert report.tokens == (10 - kept) * BLOCK
    assert len(list(journal.glob("begun-*"))) == before + 6 - kept // 2
    assert contents(folder) == whole


def test_a_shard_that_fails_is_tried_again_and_the_rest_goes_on(folder: Path, whole: dict[str, bytes]) -> None:
    report = compute(folder, trouble={10: "error", 20: "error once"}, retries=1)
    assert report.failed == {"train-00000[2:4]": "RuntimeError: no memory left on the device"}
    assert report.left == ["train-00000[2:4]"]
    assert Doubled(folder.parent / "out-journal").begun(10) == 2
    assert compute(folder).tokens == 2 * BLOCK
    assert contents(folder) == whole


def test_a_shard_that_is_refused_is_not_tried_again(folder: Path) -> None:
    report = compute(folder, trouble={10: "refused"})
    assert report.failed == {"train-00000[2:4]": "token 10 is refused."}
    assert Doubled(folder.parent / "out-journal").begun(10) == 1


def test_after_many_failures_no_more_shards_are_begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_FAILED", 2)
    report = compute(folder, trouble=dict.fromkeys((0, 10, 20, 1000), "refused"))
    assert len(report.failed) == 2
    assert report.tokens == 0


def test_a_shard_that_another_process_holds_is_left_to_it(folder: Path, whole: dict[str, bytes]) -> None:
    held = folder / PARTS / "train-00001" / "00000000-00000002.lock"
    held.parent.mkdir(parents=True)
    with FileLock(held):
        report = compute(folder)
    assert (report.left, report.failed) == (["train-00001[0:2]"], {})
    assert compute(folder).tokens == 2 * BLOCK
    assert contents(folder) == whole


def test_parts_in_any_order_more_than_once(folder: Path, whole: dict[str, bytes]) -> None:
    """A part of which other jobs did everything loads nothing, too."""
    for index in (2, 0, 2, 1):
        report = compute(folder, executor=SlurmArray(index, 3))
    assert report.left == []
    assert contents(folder) == whole
    assert len(list((folder.parent / "out-journal").glob("begun-*"))) == 6


def test_a_joiner_that_was_killed_is_made_up_for(
    folder: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parts are there and one array is joined: nothing is computed again."""
    original = module._join_column

    def killed(path: Path, *arguments: Any) -> None:
        if path.name == "train-00001.sums.npy":
            raise KeyboardInterrupt
        original(path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_join_column", killed)
        with pytest.raises(KeyboardInterrupt):
            compute(folder, executor=SlurmArray(0, 1))
    report = compute(folder, executor=SlurmArray(1, 2))  # whose shards are of another file
    assert not [name for name in report.left if name.startswith("train-00001")]
    assert compute(folder).left == []
    assert contents(folder) == whole


def test_a_part_that_was_damaged_is_computed_again(folder: Path, whole: dict[str, bytes]) -> None:
    compute(folder, executor=SlurmArray(0, 3))
    part = folder / PARTS / "train-00000" / "00000000-00000002.npz"
    content = bytearray(part.read_bytes())
    content[200] ^= 1
    part.write_bytes(content)
    reports = [compute(folder), compute(folder)]
    assert reports[-1].left == []
    assert contents(folder) == whole


def test_a_full_disk_leaves_no_part(folder: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("cocomix.artifacts.files.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            compute(folder)
    assert not [path for path in folder.rglob("*") if path.suffix in (".npz", ".tmp")]
    compute(folder)
    assert contents(folder) == whole


def test_elements_of_an_array_are_disjoint_and_together_everything() -> None:
    shards: Any = list(range(11))
    for count in range(1, 14):
        parts = [SlurmArray(index, count).share(shards) for index in range(count)]
        assert [shard for part in parts for shard in part] == shards
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_number_of_processes_that_cannot_be() -> None:
    with pytest.raises(CoCoMixError, match="--workers 0"):
        Processes(0)
