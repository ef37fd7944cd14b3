"""One writer per output: a lock on a file beside it, which says who holds it.

The lock is the kernel's (`flock`), so the death of its holder, however sudden, frees it; the file alone means nothing.
`filelock` has no shared locks of this kind, which the elements of a Slurm array need.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from cocomix.artifacts.faults import BeingWritten

logger = logging.getLogger(__name__)
_held: set[int] = set()  # descriptors of this process's locks


def _forget() -> None:
    while _held:
        os.close(_held.pop())


# A forked child (a loader's worker) shares the lock until it closes the descriptor, and may outlive a killed parent.
os.register_at_fork(after_in_child=_forget)


def this_process() -> dict[str, Any]:
    """Who writes: host, pid, command (only the verb: arguments may hold secrets), and when the process was created."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "command": command, "started": process.create_time()}


def process_lives(record: bytes) -> bool:
    """Whether the process of a `this_process` record (JSON) is there; one on another machine is taken at its word."""
    try:
        holder = json.loads(record)
        if holder["host"] != socket.gethostname():
            return True
        # Numbers are used again, so the time of creation is compared, too.
        return bool(abs(psutil.Process(holder["pid"]).create_time() - holder["started"]) < 1.0)
    except (psutil.Error, ValueError, KeyError, TypeError):
        return False


def being_written(output: str, record: bytes, remedy: str = "wait for it, or choose another --output") -> BeingWritten:
    """The error that says who writes `output`, from their `this_process` record (JSON)."""
    try:
        holder = json.loads(record)
        host, pid, command = str(holder["host"]), int(holder["pid"]), holder["command"]
    except (ValueError, KeyError, TypeError):
        return BeingWritten(f"{output} is being written by another process; {remedy}.")
    return BeingWritten(f"{output} is being written by process {pid} ({command}) on {host}; {remedy}.", host, pid)


@contextmanager
def locked(path: Path, output: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    The file is removed at the end, while the lock is held exclusively. That is free of races because whoever gets a
    lock looks whether the file it locked still has that name, and tries again if not. Raises `BeingWritten` where
    another process holds it, if not both share it.
    """
    descriptor = _acquire(path, output, shared)
    _held.add(descriptor)
    try:
        with suppress(OSError):  # who holds it is for the message only, and the disk may be full
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(this_process()).encode(), 0)
        yield
    finally:
        if descriptor in _held:  # in a forked child that leaves the block it is closed
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            _held.remove(descriptor)
            os.close(descriptor)


def refuse_writer(path: Path, output: str) -> None:
    """Refuse an output that a process writes now and does not share, without holding its lock."""
    if path.is_file():
        os.close(_acquire(path, output, shared=True))


def _acquire(path: Path, output: str, shared: bool) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                logger.warning("%s: this file system has no locks, so nothing stops a second writer.", path.parent)
                return descriptor
            record = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise being_written(output, record) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its holder removed the file meanwhile
