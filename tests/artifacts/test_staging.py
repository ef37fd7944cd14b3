"""Outputs that are whole or absent, with one writer at a time."""

import json
import multiprocessing
import os
import shutil
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cocomix.artifacts import AlreadyExists, BeingWritten, MadeFromSomethingElse, partial_path
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.stopping import Terminated
from tests.artifacts.conftest import Poem, PoemManifest, make_poem, names, write_poem

FORK = multiprocessing.get_context("fork")


def hold(output: Path, options: dict[str, bool], forks: bool, begun: Any) -> None:
    with Poem.create(output, identity={}, **options):
        if forks and os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        begun.set()
        time.sleep(60)


def another_writer(output: Path, forks: bool = False, **options: bool) -> Any:
    """A process that has begun to write an output."""
    begun = FORK.Event()
    process = FORK.Process(target=hold, args=(output, options, forks, begun))
    process.start()
    assert begun.wait(60)
    return process


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with Poem.create(output, identity={"seed": 0}) as staging:
        assert staging.path.parent == output.parent
        assert not output.exists()
        write_poem(staging)
    assert names(output.parent) == {"out"}
    assert names(output) == {"verses", "title.txt", "manifest.json"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("resume", [False, True])
def test_on_an_error_nothing_appears(tmp_path: Path, error: Any, resume: bool) -> None:
    def write() -> None:
        with Poem.create(tmp_path / "out", identity={}, resume=resume) as staging:
            (staging.path / "a").write_text("x")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == ({"out.partial"} if resume else set())


def test_finishing_is_not_forgotten(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="finish"), Poem.create(tmp_path / "out", identity={}):
        pass


def test_going_on_after_an_interruption(tmp_path: Path) -> None:
    with suppress(KeyError), Poem.create(tmp_path / "out", identity={"seed": 1}, resume=True) as staging:
        (staging.path / "done.txt").write_text("old")
        raise KeyError
    with (
        pytest.raises(MadeFromSomethingElse) as refused,
        Poem.create(tmp_path / "out", identity={"seed": 2}, resume=True),
    ):
        raise AssertionError
    assert refused.value.keys == ("seed",)
    with Poem.create(tmp_path / "out", identity={"seed": 1}, resume=True) as staging:
        assert (staging.path / "done.txt").read_text() == "old"
        (staging.path / ".half.tmp").write_text("left by a killed process")
        write_poem(staging)
    assert names(tmp_path) == {"out"}
    assert names(tmp_path / "out") == {"verses", "title.txt", "done.txt", "manifest.json"}
    (partial_path(tmp_path / "else") / "theirs").mkdir(parents=True)
    with pytest.raises(MadeFromSomethingElse), Poem.create(tmp_path / "else", identity={}, resume=True):
        raise AssertionError


@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated])
@pytest.mark.parametrize(("resume", "said"), [(True, ["nothing"]), (False, []), (True, [])])
def test_a_stopped_command_says_what_is_kept(
    tmp_path: Path, error: type[BaseException], resume: bool, said: list[str]
) -> None:
    stopped = error()
    for note in said:
        stopped.add_note(note)
    with pytest.raises(error), Poem.create(tmp_path / "out", identity={}, resume=resume):
        raise stopped
    notes = getattr(stopped, "__notes__", [])
    assert len(notes) == (1 if resume else 0)
    assert all(said or str(tmp_path / "out.partial") in note for note in notes)


def test_what_exists_is_not_replaced(tmp_path: Path) -> None:
    make_poem(tmp_path / "out", seed=1)
    with pytest.raises(AlreadyExists) as refused, Poem.create(tmp_path / "out", identity={"seed": 2}):
        raise AssertionError
    assert refused.value.keys == ("seed",)
    (tmp_path / "file").write_text("x")
    with pytest.raises(AlreadyExists), Poem.create(tmp_path / "file", identity={}):
        raise AssertionError
    with pytest.raises(CoCoMixError, match="cannot write to"), Poem.create(tmp_path / "file" / "out", identity={}):
        raise AssertionError
    (tmp_path / "empty").mkdir()
    make_poem(tmp_path / "empty")
    assert names(tmp_path) == {"file", "empty", "out"}


def test_a_finished_command_given_again(tmp_path: Path) -> None:
    assert Poem.made(tmp_path / "out", {"seed": 1}) is None
    made = make_poem(tmp_path / "out", seed=1)
    again = Poem.made(tmp_path / "out", {"seed": 1})
    assert again is not None
    assert again.manifest == made.manifest
    with pytest.raises(AlreadyExists) as refused:
        Poem.made(tmp_path / "out", {"seed": 2, "settings": {"k": (1, 2)}})
    assert refused.value.keys == ("seed", "settings")


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert partial_path(Path(".")) == tmp_path / "here.partial"
    for here in (Path("."), Path("../here"), tmp_path / "here"):
        with pytest.raises(CoCoMixError, match="current folder"), Poem.create(here, identity={}):
            raise AssertionError
    assert names(tmp_path) == {"here"}


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"shared": True}])
def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path, options: dict[str, bool]) -> None:
    first = another_writer(tmp_path / "out", **options)
    before = names(tmp_path)
    with pytest.raises(BeingWritten) as refused, Poem.create(tmp_path / "out", identity={}):
        raise AssertionError
    assert (refused.value.host, refused.value.pid) == (socket.gethostname(), first.pid)
    assert names(tmp_path) == before
    first.kill()  # its lock dies with it, and what it left does not disturb
    first.join()
    with Poem.create(tmp_path / "out", identity={}, resume=bool(options)) as staging:
        write_poem(staging)
    assert names(tmp_path) == {"out"}


def write_slowly(output: Path, seed: int, both: Any) -> None:
    both.wait()
    with Poem.create(output, identity={"seed": seed}) as staging:
        (staging.path / "a").write_text(str(seed))
        time.sleep(0.3)
        (staging.path / "b").write_text(str(seed))
        staging.finish(PoemManifest())


def test_two_writers_of_one_output_do_not_mix(tmp_path: Path) -> None:
    """Two `prepare` with different seeds, the second while the first is at it: one output, of one of them."""
    together = FORK.Barrier(2)
    both = [FORK.Process(target=write_slowly, args=(tmp_path / "out", seed, together)) for seed in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    codes = [process.exitcode for process in both]
    assert sorted(map(bool, codes)) == [False, True]
    poem = Poem.open(tmp_path / "out")
    assert poem.manifest.identity == {"seed": codes.index(0)}
    assert {poem.file(name).read_text() for name in "ab"} == {str(codes.index(0))}
    assert not poem.verify().broken


def test_jobs_may_share_a_folder_and_one_finishes(tmp_path: Path) -> None:
    output, identity = tmp_path / "out", {"seed": 0}
    with Poem.create(output, identity=identity, shared=True) as one:
        with Poem.create(output, identity=identity, shared=True) as other:
            assert other.path == one.path
            with one.alone() as mine, other.alone() as theirs:
                assert (mine, theirs) == (True, False)
                write_poem(one)
            with other.alone() as theirs:
                assert not theirs
        with pytest.raises(AlreadyExists), Poem.create(output, identity=identity, shared=True):
            raise AssertionError
    with (
        Poem.create(tmp_path / "next", identity=identity, shared=True),
        pytest.raises(MadeFromSomethingElse),
        Poem.create(tmp_path / "next", identity={"seed": 1}, shared=True),
    ):
        raise AssertionError
    assert names(tmp_path) == {"out", "next.partial"}


def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A loader's worker outlives a killed trainer by seconds; the same command must be able to go on at once."""
    first = another_writer(tmp_path / "out", forks=True, resume=True)
    first.kill()
    first.join()
    with Poem.create(tmp_path / "out", identity={}, resume=True) as staging:
        write_poem(staging)


def hold_for_a_moment(folder: str, counter: str, rounds: int) -> None:
    from cocomix.artifacts import locked

    done = 0
    while done < rounds:
        try:
            with locked(Path(folder) / "x.lock", "x"):
                inside = Path(counter) / "inside"
                inside.mkdir()  # fails if another is in
                inside.rmdir()
                done += 1
        except BeingWritten:
            time.sleep(0.001)


def test_removing_the_lock_file_lets_nobody_else_in(tmp_path: Path) -> None:
    workers = [FORK.Process(target=hold_for_a_moment, args=(tmp_path, tmp_path, 60)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert names(tmp_path) == set()


def test_the_disk_holds_the_files_and_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, fsync = [], os.fsync
    monkeypatch.setattr("os.fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    make_poem(tmp_path / "out")
    staging = Path(next(path for path in flushed if path.endswith("title.txt"))).parent
    assert {str(staging / name) for name in ("title.txt", "verses/1.txt", "verses", "manifest.json")} <= set(flushed)
    assert flushed[-1] == str(tmp_path)


def test_entries_that_are_known_are_not_hashed_again(tmp_path: Path) -> None:
    poem = make_poem(tmp_path / "one")
    with Poem.create(tmp_path / "two", identity={}) as staging:
        shutil.copy(poem.file("title.txt"), staging.path)
        staging.finish(PoemManifest(files={"title.txt": poem.manifest.files["title.txt"]}))
    assert Poem.open(tmp_path / "two").manifest.files == {"title.txt": poem.manifest.files["title.txt"]}


def test_the_lock_says_nothing_of_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cocomix", "prepare", "--token", "hunter2"])
    with Poem.create(tmp_path / "out", identity={}) as staging:
        holder = json.loads((tmp_path / "out.lock").read_text())
        write_poem(staging)
    assert (holder["pid"], holder["command"]) == (os.getpid(), "cocomix prepare")


def test_what_serves_to_go_on_is_removed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is killed while it finishes has lost nothing of its work."""
    output = tmp_path / "out"

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    def write() -> None:
        with Poem.create(output, identity={}, resume=True) as staging:
            (staging.path / "parts").mkdir(exist_ok=True)
            (staging.path / "parts" / "1").write_text("1")
            (staging.path / "whole").write_text("1")
            staging.finish(PoemManifest(), scratch=["parts"])

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            write()
    assert {"parts", "whole", "plan.json"} <= names(partial_path(output))
    write()
    assert names(output) == {"whole", "manifest.json"}
    assert set(Poem.open(output).manifest.files) == {"whole"}


def test_finishing_does_not_look_at_what_other_jobs_are_removing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if isinstance(path, str | os.PathLike) and "parts" in Path(path).parts and Path(path).is_dir():
            shutil.rmtree(path)  # another job is faster
        return listed(path)

    with Poem.create(tmp_path / "out", identity={}, resume=True) as staging:
        (staging.path / "parts" / "train").mkdir(parents=True)
        (staging.path / "whole").write_text("1")
        with monkeypatch.context() as patched:
            patched.setattr(os, "scandir", scandir)
            staging.finish(PoemManifest(), scratch=["parts"])
    assert names(tmp_path / "out") == {"whole", "manifest.json"}
