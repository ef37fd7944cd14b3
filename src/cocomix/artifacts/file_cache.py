"""Files of artefacts at URLs in a folder of bounded size: fetched when they are read, the longest unused removed.

A file is named by its size and SHA-256: versions never mix, and tokens and what is stored beside them share the folder.
Processes share it, too. Each file has a lock, under which one process fetches it; a lock of the folder guards its size,
in which a file counts as whole as soon as somebody begins to fetch it.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from cocomix.artifacts.faults import Damaged
from cocomix.artifacts.files import explained_full_disk, file_sha256, flush
from cocomix.artifacts.manifests import FileEntry
from cocomix.artifacts.store import RemoteFolder

_WHOLE, _PART = ".npy", ".part"
_WAIT = 0.05  # seconds before room is looked for again, while other processes' fetching is in the way


@dataclass(frozen=True)
class FileCache:
    """A folder of copies. Picklable; holds nothing that a forked process must not use."""

    folder: Path
    limit: int
    """Bytes that its files may take, at least those of the largest file."""

    def file(self, url: str, name: str, entry: FileEntry) -> Path:
        """The copy of the file `name` at `url`, which was there a moment ago: others may remove it to make room.

        Raises `Damaged` where the file at the URL is not what the manifest describes, `Unreachable` where it cannot be
        fetched, `CoCoMixError` where it is not there, access is refused, or the disk is full.
        """
        path = self.folder / f"{entry.size}-{entry.sha256}{_WHOLE}"
        if not _used(path):
            with explained_full_disk(self.folder):
                self._lock(path).parent.mkdir(parents=True, exist_ok=True)
                with FileLock(self._lock(path)):
                    if not _used(path):  # meanwhile another process may have fetched it
                        self._fetch(url, name, entry, path)
        return path

    def _fetch(self, url: str, name: str, entry: FileEntry, path: Path) -> None:
        part = path.with_suffix(_PART)
        self._reserve(part)
        try:
            RemoteFolder(url).get(name, part, entry.size)  # opened here: a forked process needs a connection of its own
            if file_sha256(part) != entry.sha256:
                raise Damaged(
                    f"{url}/{name} has changed since it was written; restore it from a copy, or push it again.", name
                )
            flush(part)
            with self._alone():
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, part: Path) -> None:
        """Begin a file, once there is room for it."""
        while True:
            with self._alone():
                if self._has_room(_size(part)):
                    part.touch()
                    return
            time.sleep(_WAIT)

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes fit after the longest unused files are removed, which is done if it suffices."""
        whole, taken = [], size
        for path in self.folder.iterdir():
            if path.suffix == _PART and self._abandoned(path):
                path.unlink()
            elif path.suffix in (_WHOLE, _PART):
                taken += _size(path)
                whole += [path] if path.suffix == _WHOLE else []
        if taken - sum(map(_size, whole)) > self.limit:
            return False
        for path in sorted(whole, key=lambda path: path.stat().st_mtime_ns):
            if taken <= self.limit:
                break
            path.unlink()
            taken -= _size(path)
        return True

    def _abandoned(self, part: Path) -> bool:
        """Whether the process that began to fetch a file has ended: nobody holds the file's lock."""
        try:
            with FileLock(self._lock(part), blocking=False):
                return True
        except Timeout:
            return False

    def _alone(self) -> FileLock:
        return FileLock(self.folder / "locks" / "folder")

    def _lock(self, path: Path) -> Path:
        return self.folder / "locks" / path.stem


def _size(path: Path) -> int:
    """Bytes of a whole file, by its name."""
    return int(path.name.split("-")[0])


def _used(path: Path) -> bool:
    """Whether a file is there; it is the last used from now on."""
    try:
        os.utime(path)
        return path.stat().st_size == _size(path)
    except FileNotFoundError:
        return False
