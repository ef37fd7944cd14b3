"""Uploads of finished folders: claimed by a marker, the manifest last, so that the later of two writers is refused."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cocomix.artifacts.faults import AlreadyExists, Unreachable
from cocomix.artifacts.lock import process_lives, refusal, this_process
from cocomix.artifacts.manifests import MANIFEST
from cocomix.artifacts.store import RemoteFolder

__all__ = ["MARKER", "Claim", "claimed"]

MARKER = ".cocomix-upload"
"""At a URL, while something is being made for it: JSON, the process that makes it and a token of its own."""


class Claim:
    """The right to write to a URL, as far as object stores can give one.

    S3, GCS and memory create a file only where there is none in one step. On other stores two writers may both believe
    so for a moment; then the one whose marker was overwritten is refused before it uploads anything.
    """

    def __init__(self, url: str) -> None:
        self.remote = RemoteFolder(url)
        self._marker = {**this_process(), "token": uuid.uuid4().hex}
        files = self.remote.files()
        if MANIFEST in files:
            raise AlreadyExists(f"{url} already exists; remove it or choose another --output.")
        if files and MARKER not in files:
            raise AlreadyExists(f"{url} holds something else; remove it or choose another --output.")
        content = json.dumps(self._marker).encode()
        if not self.remote.create(MARKER, content) and not process_lives(self._found()):
            self.remote.write(MARKER, content)  # its process was killed
        self.check()

    def check(self) -> None:
        """Refuse to go on if another process writes there, or has.

        Raises:
            BeingWritten: the marker is not ours.
            AlreadyExists: there is a manifest.
        """
        url, found = self.remote.url, self._found()
        if found.get("token") != self._marker["token"]:
            raise refusal(url, found, f"choose another --output, or remove {url}/{MARKER} if that process is no more")
        if MANIFEST in self.remote.files():
            raise AlreadyExists(f"{url} was written by another process meanwhile; choose another --output.")

    def publish(self, folder: Path) -> None:
        """Upload a finished folder.

        Raises:
            Unreachable: the upload failed.
        """
        self.check()
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        names.remove(MANIFEST)
        for name in names:
            self.remote.upload(name, folder / name)
        there = self.remote.files()
        for name in names:
            if there.get(name) != (folder / name).stat().st_size:
                raise Unreachable(f"{self.remote.url}/{name} did not arrive whole; upload it again.")
        self.check()
        if not self.remote.create(MANIFEST, (folder / MANIFEST).read_bytes()):
            raise AlreadyExists(f"{self.remote.url} was written by another process meanwhile; choose another --output.")

    def release(self) -> None:
        """Take the marker away again if it is ours."""
        if self._found().get("token") == self._marker["token"]:
            self.remote.remove(MARKER)

    def _found(self) -> dict[str, Any]:
        try:
            found = json.loads(self.remote.read(MARKER))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@contextmanager
def claimed(url: str) -> Iterator[Claim]:
    """Claim a URL while the block runs.

    Raises:
        BeingWritten: another process has claimed it.
        AlreadyExists: something is there.
    """
    claim = Claim(url)
    try:
        yield claim
    finally:
        claim.release()
