"""Uploading: what is asked of the hub's client, and what is said when it cannot."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

from cocomix.interop import check_hub_access, push_to_hub
from cocomix.interop import hub_upload as hub
from cocomix.runtime.errors import CoCoMixError
from tests.command_line import Cli
from tests.workshop import Workshop


class Address(str):
    """As `create_repo` returns it."""

    @property
    def repo_id(self) -> str:
        return self.removeprefix("https://hub/")


class Hub:
    """Stands in for `HfApi`: notes what is asked, fails where it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.failures: dict[str, Exception] = {}

    def __call__(self) -> "Hub":
        return self

    def _note(self, name: str, values: Any) -> None:
        self.calls.append((name, values))
        if name in self.failures:
            raise self.failures[name]

    def whoami(self) -> dict[str, str]:
        self._note("whoami", None)
        return {"name": "me"}

    def create_repo(self, repo_id: str, **values: Any) -> Any:
        self._note("create_repo", {"repo_id": repo_id, **values})
        return Address(f"https://hub/me/{repo_id}")

    def upload_folder(self, **values: Any) -> None:
        self._note("upload_folder", {**values, "files": {path.name for path in values["folder_path"].iterdir()}})


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr(hub, "HfApi", stand_in)
    return stand_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("README.md", "config.json", "model.safetensors"):
        (tmp_path / name).touch()
    return tmp_path


def test_one_commit_to_a_private_repository(stand_in: Hub, folder: Path) -> None:
    assert push_to_hub(folder, "first") == "https://hub/me/first"
    (_, made), (_, uploaded) = stand_in.calls[1:]
    assert made == {"repo_id": "first", "private": True, "exist_ok": True, "repo_type": "model"}
    assert uploaded["repo_id"] == "me/first"
    assert uploaded["files"] == {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ("whoami", LocalTokenNotFoundError("no token"), "run `hf auth login`"),
        ("whoami", OSError("Name or service not known"), "cannot log in at the Hugging Face Hub (Name or"),
        ("create_repo", OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        ("create_repo", RuntimeError("403 Forbidden"), "cannot upload at the Hugging Face Hub (403 Forbidden)"),
        ("upload_folder", ConnectionError(), "(ConnectionError); the export is in"),
    ],
)
def test_the_hub_does_not_want(stand_in: Hub, folder: Path, call: str, error: Exception, says: str) -> None:
    stand_in.failures[call] = error
    with pytest.raises(CoCoMixError) as caught:
        push_to_hub(folder, "me/first")
    assert says in str(caught.value)
    if call != "whoami":
        assert f"`hf upload me/first {folder}`" in str(caught.value)
    assert [name for name, _ in stand_in.calls][-1] == call


def test_names_and_folders(stand_in: Hub, folder: Path, tmp_path: Path) -> None:
    for name in ("a/b/c", "-x", "a--b", ""):
        with pytest.raises(CoCoMixError, match="repository"):
            check_hub_access(name)
    with pytest.raises(CoCoMixError, match="is no export"):
        push_to_hub(tmp_path / "nowhere", "me/first")
    assert stand_in.calls == []


def test_the_verb(cli: Cli, stand_in: Hub, workshop: Workshop, tmp_path: Path) -> None:
    import json

    output = tmp_path / "out"
    done = cli("export", workshop.ntp_run, "-o", output, "--push", "first", "--public", "--license", "mit", "--json")
    assert json.loads(done.out) == {"folder": str(output), "repository": "https://hub/me/first"}
    assert f'from_pretrained("{output}")' in done.err
    assert f"{output} is at https://hub/me/first" in done.err
    assert stand_in.calls[-2][1]["private"] is False
    assert "README.md" in stand_in.calls[-1][1]["files"]
    cli.refuses("export", workshop.ntp_run, "-o", output, says="already exists")
    cli.refuses("export", workshop.data, "-o", tmp_path / "no", says=str(workshop.data))
    cli.refuses("export", workshop.ntp_run, "-o", tmp_path / "no", "--public", says="--push")
    stand_in.failures["whoami"] = LocalTokenNotFoundError("no token")
    cli.refuses("export", workshop.ntp_run, "-o", tmp_path / "no", "--push", "me/first", says="hf auth login")
    assert not (tmp_path / "no").exists()  # found out before anything was written
