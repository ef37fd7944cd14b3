"""Uploads of finished folders: the URL is claimed by a marker, the manifest comes last, the later writer is refused."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cocomix.artifacts.faults import AlreadyExists, Unreachable
from cocomix.artifacts.lock import being_written, process_lives, this_process
from cocomix.artifacts.manifests import MANIFEST
from cocomix.artifacts.store import RemoteFolder
from cocomix.runtime.console import progress

__all__ = ["MARKER", "Claim", "claimed"]

MARKER = ".cocomix-upload"
"""At a URL, while something is made for it: JSON, the process that makes it and a token of its own."""


class Claim:
    """The right to write to a URL, as far as object stores can give one.

    S3, GCS and memory create a file only where there is none in one step. On other stores two writers may both believe
    so for a moment; then the one whose marker was overwritten is refused before it uploads anything.

    Raises:
        BeingWritten: another process has claimed it.
        AlreadyExists: something is there.
    """

    def __init__(self, url: str) -> None:
        self.remote = RemoteFolder(url)
        self._marker = json.dumps({**this_process(), "token": uuid.uuid4().hex}).encode()
        there = self.remote.files()
        if MANIFEST in there or (there and MARKER not in there):
            raise AlreadyExists(f"{url} already exists; remove it or choose another --output.")
        if not self.remote.create(MARKER, self._marker) and not process_lives(self._found()):
            self.remote.write(MARKER, self._marker)  # its process was killed
        self.check()

    def check(self) -> None:
        """Refuse to go on if another process writes there, or has.

        Raises:
            BeingWritten: the marker is not ours.
            AlreadyExists: there is a manifest.
        """
        url, found = self.remote.url, self._found()
        if found != self._marker:
            remedy = f"choose another --output, or remove {url}/{MARKER} if that process is no more"
            raise being_written(url, found, remedy)
        if MANIFEST in self.remote.files():
            raise AlreadyExists(f"{url} was written by another process meanwhile; choose another --output.")

    def publish(self, folder: Path) -> None:
        """Upload a finished folder.

        Raises:
            BeingWritten: the marker is not ours any more.
            AlreadyExists: another manifest was faster.
            Unreachable: the upload failed.
        """
        self.check()
        sizes = {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        }
        with progress("upload", sum(sizes.values()), "bytes") as advance:
            for name in sorted(sizes.keys() - {MANIFEST}):
                self.remote.upload(name, folder / name)
                advance(sizes[name])
        self.check()
        there = self.remote.files()
        for name in sorted(sizes.keys() - {MANIFEST}):
            if there.get(name) != sizes[name]:
                raise Unreachable(f"{self.remote.url}/{name} did not arrive whole; upload it again.")
        manifest = (folder / MANIFEST).read_bytes()
        if not self.remote.create(MANIFEST, manifest) and self.remote.read(MANIFEST) != manifest:
            self.check()

    def _found(self) -> bytes:
        try:
            return self.remote.read(MARKER)
        except FileNotFoundError:
            return b""


@contextmanager
def claimed(url: str) -> Iterator[Claim]:
    """Claim a URL while the block runs."""
    claim = Claim(url)
    try:
        yield claim
    finally:
        if claim._found() == claim._marker:
            claim.remote.remove(MARKER)
