import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from cocomix.artifacts.output import (
    PLAN,
    aside_path,
    claim_partial,
    explained_full_disk,
    fingerprint_json,
    partial_path,
    read_json,
    staged_directory,
    write_json,
    write_once,
    write_text,
)
from cocomix.runtime.errors import CoCoMixError


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with staged_directory(output) as folder:
        assert folder == partial_path(output)
        (folder / "a").write_text("x")
        assert not output.exists()
    assert names(output.parent) == {"out"}
    assert (output / "a").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("resume", [False, True])
def test_on_an_error_nothing_appears(tmp_path: Path, error: Any, resume: bool) -> None:
    def write() -> None:
        with staged_directory(tmp_path / "out", resume=resume) as folder:
            (folder / "a").write_text("x")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == ({"out.partial"} if resume else set())


def test_what_an_interrupted_run_left(tmp_path: Path) -> None:
    left = partial_path(tmp_path / "out")
    left.mkdir()
    (left / "a").write_text("old")
    with staged_directory(tmp_path / "out", resume=True) as folder:
        assert (folder / "a").read_text() == "old"
    left.mkdir()
    (left / "b").write_text("old")
    with staged_directory(tmp_path / "other") as folder:
        assert names(folder) == set()
    with staged_directory(tmp_path / "third", resume=True) as folder:
        assert names(folder) == set()


def test_an_empty_folder_may_be_filled_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with staged_directory(tmp_path / "empty") as folder:
        (folder / "a").write_text("x")
    assert names(tmp_path / "empty") == {"a"}
    (tmp_path / "file").write_text("x")
    for taken in ("empty", "file"):
        with pytest.raises(CoCoMixError, match=f"{taken} already exists"), staged_directory(tmp_path / taken):
            raise AssertionError
    with pytest.raises(CoCoMixError, match="cannot write to"), staged_directory(tmp_path / "file" / "out"):
        raise AssertionError
    assert names(tmp_path) == {"empty", "file"}


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert partial_path(Path(".")) == tmp_path / "here.partial"
    assert partial_path(Path("..")) == tmp_path.with_name(tmp_path.name + ".partial")
    for here in (Path("."), Path("../here"), tmp_path / "here"):
        with pytest.raises(CoCoMixError, match="current folder"), staged_directory(here):
            raise AssertionError
    assert names(tmp_path) == {"here"}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"é": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, 2.5, None]}
    assert "é" in path.read_text(encoding="utf-8")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_text(path, "new")
    assert read_json(path) == {"é": [1, 2.5, None]}
    assert names(tmp_path) == {"x.json"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert names(tmp_path) == {"x.json"}


def test_reading_json(tmp_path: Path) -> None:
    with pytest.raises(CoCoMixError, match="does not exist"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(CoCoMixError, match="not valid JSON"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CoCoMixError, match="not valid JSON"):
        read_json(tmp_path / "x.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5))
def test_fingerprints_do_not_depend_on_key_order(value: dict[str, Any]) -> None:
    assert fingerprint_json(value) == fingerprint_json(dict(reversed(value.items())))
    assert fingerprint_json(value) == fingerprint_json(json.loads(json.dumps(value, indent=3)))
    assert fingerprint_json({**value, "more": 1}) != fingerprint_json({**value, "more": 2})


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # tokenizers
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
)
def test_a_full_disk_is_told_in_one_sentence(error: Exception) -> None:
    with pytest.raises(CoCoMixError, match="cannot write run: No space left"), explained_full_disk(Path("run")):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "gone"), RuntimeError("a bug"), CoCoMixError("No space left")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained_full_disk(Path("run")):
        raise error
    assert caught.value is error


def test_a_partial_folder_killed_while_its_plan_was_written_is_continued(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / ".plan.json.123.tmp").write_text('{"of"')
    claim_partial(folder, {"of": 1}, tmp_path / "out")
    assert read_json(folder / PLAN) == {"of": 1}
    (folder / "else").touch()
    (folder / PLAN).unlink()
    with pytest.raises(CoCoMixError, match="holds something else"):
        claim_partial(folder, {"of": 1}, tmp_path / "out")


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool) -> None:
    if not hard_links:

        def refused(source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr("os.link", refused)
    path = tmp_path / "x.json"
    assert write_once(path, {"by": 1})
    assert not write_once(path, {"by": 2})
    assert read_json(path) == {"by": 1}
    assert names(tmp_path) == {"x.json"}


def test_what_was_left_half_written_does_not_get_into_an_output(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "out") as folder:
        write_json(folder / "x.json", 1, shared=True)
        aside_path(folder / "x.json").write_text("half")
    assert names(tmp_path / "out") == {"x.json"}


def test_a_file_that_another_job_takes_away_meanwhile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def taken_away(path: Any, *options: Any) -> int:
        if Path(path).name == "theirs":
            Path(path).rename(tmp_path / "out.partial" / "moved")
        return opened(path, *options)

    with staged_directory(tmp_path / "out") as folder:
        write_json(folder / "x.json", 1)
        (folder / "theirs").write_text("1")
        monkeypatch.setattr("cocomix.artifacts.output.os.open", taken_away)
    assert names(tmp_path / "out") == {"x.json", "moved"}
