"""Uploads of finished folders: the URL is claimed by a marker, the manifest comes last, the later writer is refused."""

import json
import shutil
import uuid
from pathlib import Path

from cocomix.artifacts.faults import AlreadyExists, Unreachable
from cocomix.artifacts.files import file_names
from cocomix.artifacts.lock import being_written, process_lives, this_process
from cocomix.artifacts.manifests import MANIFEST
from cocomix.artifacts.store import NotThere, RemoteFolder, copy_place
from cocomix.runtime.console import progress

MARKER = ".cocomix-upload"
"""At a URL, while something is made for it: JSON, the process that makes it and a token of its own."""


class Claim:
    """The right to write to a URL, as far as object stores can give one; `close` gives it back.

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
        """Refuse to go on if another process writes there (the marker is not ours), or has (there is a manifest)."""
        url, found = self.remote.url, self._found()
        if found != self._marker:
            remedy = f"choose another --output, or remove {url}/{MARKER} if that process is no more"
            raise being_written(url, found, remedy)
        if MANIFEST in self.remote.files():
            raise AlreadyExists(f"{url} was written by another process meanwhile; choose another --output.")

    def publish(self, folder: Path) -> None:
        """Upload a finished folder; refused as by `check` if another process was faster."""
        self.check()
        sizes = {name: (folder / name).stat().st_size for name in file_names(folder) if name != MANIFEST}
        with progress("upload", sum(sizes.values()), "bytes") as advance:
            for name, size in sizes.items():
                self.remote.upload(name, folder / name)
                advance(size)
        self.check()
        there = self.remote.files()
        for name, size in sizes.items():
            if there.get(name) != size:
                raise Unreachable(f"{self.remote.url}/{name} did not arrive whole; upload it again.")
        manifest = (folder / MANIFEST).read_bytes()
        if not self.remote.create(MANIFEST, manifest) and self.remote.read(MANIFEST) != manifest:
            self.check()

    def publish_made(self, folder: Path) -> None:
        """Upload a folder that was made in the cache, and keep it there as the local copy; if that fails, as it is."""
        url = self.remote.url
        try:
            self.publish(folder)
        except Unreachable as error:
            raise Unreachable(
                f"{str(error).rstrip('.')}; the output is whole in {folder}: run the same command again, or `cocomix "
                f"push {folder} {url}`, to upload it."
            ) from error
        copy = copy_place(url, (folder / MANIFEST).read_bytes())
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(copy, ignore_errors=True)
        folder.rename(copy)

    def close(self) -> None:
        """Remove the marker, if it is ours."""
        if self._found() == self._marker:
            self.remote.remove(MARKER)

    def _found(self) -> bytes:
        try:
            return self.remote.read(MARKER)
        except NotThere:
            return b""
