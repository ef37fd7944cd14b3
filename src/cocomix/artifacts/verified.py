"""Which files were hashed on this machine and found right, so that no process hashes them again.

A file counts as the one that was hashed while its size, its times of change and its recorded hash are the same. The
record lies in the cache, not in the artefact, which may be read-only or on a disk that several machines share.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from cocomix.artifacts.store import cache_folder


class VerifiedFiles:
    """The record of one folder: a line per hashed file, appended, so that processes need no lock to write it."""

    def __init__(self, folder: Path) -> None:
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
        self._record = cache_folder() / "verified" / name
        self._known: set[str] = set()

    def holds(self, path: Path, sha256: str) -> bool:
        """Whether the file, as it is now, was hashed before and had this hash."""
        if not path.is_file():
            return False
        line = _line(path, sha256)
        if line not in self._known:
            with suppress(OSError):
                self._known.update(self._record.read_text(encoding="utf-8").splitlines())
        return line in self._known

    def note(self, path: Path, sha256: str) -> None:
        """Record that the file has this hash. Where the cache cannot be written, for this process only."""
        line = _line(path, sha256)
        self._known.add(line)
        with suppress(OSError):
            self._record.parent.mkdir(parents=True, exist_ok=True)
            with self._record.open("a", encoding="utf-8") as stream:
                stream.write(f"{line}\n")

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Let one process at a time fetch or hash a file; the others wait, and find it done."""
        lock = FileLock(f"{self._record}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock")
        with suppress(OSError):  # where the cache cannot be written, each does it for itself
            self._record.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _line(path: Path, sha256: str) -> str:
    found = path.stat()
    return json.dumps([str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, sha256])
