"""Files of artefacts at URLs in a folder of bounded size: its limit, processes that share it, faults of the network."""

import multiprocessing
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cocomix.artifacts import Damaged, FileCache, Unreachable, arrays, file_entry, mapped_array
from cocomix.data import Tokens
from tests.served import FAULTS, Served, served
from tests.workshop import Workshop

SIZES = (3000, 1000, 3000, 2000, 2500, 1500, 3000, 700)
LIMIT = 7000


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Files at a URL, by name."""
    folder = tmp_path / "there"
    folder.mkdir()
    for number, size in enumerate(SIZES):
        (folder / f"{number}.npy").write_bytes(random.Random(number).randbytes(size))
    return {path.name: file_entry(path) for path in sorted(folder.iterdir())}


@pytest.fixture
def server(files: dict[str, Any], tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path / "there") as server:
        yield server


def taken(folder: Path) -> int:
    """Bytes of the files in the folder, those that vanish meanwhile left out."""
    sizes = []
    for path in folder.glob("*.*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return sum(sizes)


@contextmanager
def sampled(measure: Callable[[], int]) -> Iterator[list[int]]:
    found, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.001):
            found.append(measure())

    thread = threading.Thread(target=look)
    thread.start()
    yield found
    ended.set()
    thread.join()


def read(cache: FileCache, url: str, files: dict[str, Any], seed: int) -> None:
    """Read files at random, as a process of its own."""
    draw = random.Random(seed)
    for _ in range(60):
        number = draw.randrange(len(SIZES))
        name = f"{number}.npy"
        try:
            content = cache.file(url, name, files[name]).read_bytes()
        except FileNotFoundError:  # removed before it was opened
            continue
        assert content == random.Random(number).randbytes(SIZES[number])


def test_processes_share_a_cache_that_keeps_its_limit(files: dict[str, Any], server: Served, tmp_path: Path) -> None:
    cache = pickle.loads(pickle.dumps(FileCache(tmp_path / "cache", LIMIT)))  # noqa: S301
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=read, args=(cache, server.url, files, seed)) for seed in range(3)]
    with sampled(lambda: taken(cache.folder)) as peak:
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert max(SIZES) < max(peak) <= LIMIT
    assert not list(cache.folder.glob("*.part"))


def test_the_longest_unused_file_makes_room(files: dict[str, Any], server: Served, tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", LIMIT)
    for name in ("0.npy", "1.npy", "3.npy", "0.npy", "7.npy", "5.npy"):
        cache.file(server.url, name, files[name])
    assert server.asked == ["0.npy", "1.npy", "3.npy", "7.npy", "5.npy"]
    kept = {int(path.name.split("-")[0]) for path in cache.folder.glob("*.npy")}
    assert kept == {3000, 700, 1500}  # without 1.npy and 3.npy


def test_what_a_killed_process_left_is_removed(files: dict[str, Any], server: Served, tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", LIMIT)
    cache.file(server.url, "0.npy", files["0.npy"])
    (cache.folder / f"6900-{'0' * 64}.part").write_bytes(b"half")
    cache.file(server.url, "2.npy", files["2.npy"])
    assert sorted(path.name.split("-")[0] for path in cache.folder.glob("*.*")) == ["3000", "3000"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_network_is_never_damage(
    fault: str, files: dict[str, Any], server: Served, tmp_path: Path
) -> None:
    cache = FileCache(tmp_path / "cache", LIMIT)
    server.fault = lambda number, name: fault if number <= 4 else None
    path = cache.file(server.url, "0.npy", files["0.npy"])
    assert path.read_bytes() == random.Random(0).randbytes(SIZES[0])
    assert server.asked == ["0.npy"] * 5
    server.asked.clear()
    server.fault = lambda number, name: fault
    with pytest.raises(Unreachable, match=r"1\.npy"):
        cache.file(server.url, "1.npy", files["1.npy"])
    # In one layer: under it, only aiohttp asks again at once where it gets no answer at all.
    assert server.asked == ["1.npy"] * (10 if fault == "reset" else 5)
    assert [path.suffix for path in cache.folder.glob("*.*")] == [".npy"]


@pytest.mark.parametrize("spoil", [lambda content: content[:-1], lambda content: content[:-1] + b"?"])
def test_a_file_that_is_damaged_there(spoil: Any, files: dict[str, Any], server: Served, tmp_path: Path) -> None:
    cache, there = FileCache(tmp_path / "cache", LIMIT), tmp_path / "there" / "0.npy"
    there.write_bytes(spoil(there.read_bytes()))
    with pytest.raises(Damaged) as refused:
        cache.file(server.url, "0.npy", files["0.npy"])
    assert refused.value.file == "0.npy"
    assert not list(cache.folder.glob("*.*"))


def test_maps_of_removed_files_are_closed(
    workshop: Workshop, tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tokens.open(workshop.data).push("memory://b/data")
    tokens, local = Tokens.open("memory://b/data"), Tokens.open(workshop.data)
    names = [file.name for file in tokens.manifest.splits["train"].files]
    size = tokens.manifest.files[names[0]].size
    tokens.keep_in(FileCache(tmp_path / "bounded", 2 * size), names)
    monkeypatch.setattr(arrays, "_SECONDS", 0.0)
    for name in names[:-1]:
        shape = (size - 128) // tokens.dtype.itemsize
        mapped = [mapped_array(one, name, tokens.dtype, (shape,), scattered=True) for one in (tokens, local)]
        assert (mapped[0] == mapped[1]).all()
        open_maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/bounded/" in line]
        del mapped
        assert sum(line.endswith("(deleted)") for line in open_maps) <= 1  # until the next file is read
    assert len(open_maps) > 1
    assert taken(tmp_path / "bounded") <= 2 * size
