"""How errors of verbs are told: one sentence, an exit status, what was kept; mistakes of ours with their traceback."""

import errno
from pathlib import Path

import pytest
from pydantic import ValidationError

from cocomix.artifacts import BeingWritten
from cocomix.cli.failures import exit_after
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Section
from cocomix.runtime.stopping import Terminated


class Recipe(Section):
    tokens: int


def invalid() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"tokenz": 3})
    return caught.value


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C."),
        (Terminated(), 143, "stopped by SIGTERM."),
        (CoCoMixError("the recipe is empty."), 1, "the recipe is empty."),
        (BeingWritten("out is being written by process 7 on node3.", "node3", 7), 1, "node3"),
        (invalid(), 1, "tokenz"),
        (OSError(errno.ENOSPC, "No space left on device", "out/a"), 1, "cannot write out/a"),
        (OSError(errno.EACCES, "Permission denied", "out/a"), 1, "cannot write out/a"),
    ],
)
@pytest.mark.parametrize("kept", [[], ["31 of 64 shards are kept"]])
def test_a_persons_doing_is_told_in_a_sentence(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, says: str, kept: list[str]
) -> None:
    error.__notes__ = list(kept)
    with pytest.raises(SystemExit) as caught:
        exit_after(error)
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (status, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says.rstrip(".") in err
    assert err.endswith(f"; {kept[0]}.\n" if kept else ".\n")


def test_a_file_that_may_not_be_read_is_told_from_one_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.txt").touch()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # for root everything may be read
    for name, verb in (("corpus.txt", "read"), ("new", "write")):
        with pytest.raises(SystemExit):
            exit_after(OSError(errno.EACCES, "Permission denied", str(tmp_path / name)))
        assert f"cannot {verb} {tmp_path / name}" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EPIPE, "Broken pipe"), ValueError("a bug")])
def test_a_mistake_of_ours_is_raised(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        exit_after(error)
    assert caught.value is error


def test_verbose_shows_where_it_was_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        exit_after(CoCoMixError("the recipe is empty."), verbose=True)
    assert "Traceback" not in capsys.readouterr().err.splitlines()[-1]
