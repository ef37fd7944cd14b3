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

__all__ = ["locked", "process_lives", "refusal", "this_process"]

logger = logging.getLogger(__name__)

_held: set[int] = set()
"""Descriptors of the locks of this process."""


def _forget() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# A forked child (a loader's worker) holds the lock, too, until it closes the descriptor: it would outlive the process.
os.register_at_fork(after_in_child=_forget)


def this_process() -> dict[str, Any]:
    """Who writes: `host`, `pid`, `command` and `started` (seconds since the epoch, which tells reused numbers apart).

    Of the command only the verb is kept: arguments may hold secrets.
    """
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "command": command, "started": process.create_time()}


def process_lives(holder: dict[str, Any]) -> bool:
    """Whether the process of a `this_process` record is still there; one on another machine is taken at its word."""
    if holder.get("host") != socket.gethostname():
        return True
    try:
        return bool(abs(psutil.Process(int(holder["pid"])).create_time() - float(holder["started"])) < 1.0)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def refusal(
    output: str, holder: dict[str, Any], remedy: str = "wait for it, or choose another --output"
) -> BeingWritten:
    """The error that says who writes `output`."""
    host, pid = str(holder.get("host", "an unknown machine")), holder.get("pid")
    by = f"process {pid} ({holder.get('command')})" if isinstance(pid, int) else "another process"
    return BeingWritten(
        f"{output} is being written by {by} on {host}; {remedy}.", host, pid if isinstance(pid, int) else 0
    )


@contextmanager
def locked(path: Path, output: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    The file is removed at the end while the lock is held exclusively. That is free of races because whoever gets a lock
    looks whether the file it locked still has that name, and tries again if not.

    Args:
        path: the lock file.
        output: what is written, for the message.
        shared: others may hold it at the same time if they share it, too.

    Raises:
        BeingWritten: another process holds it.
    """
    descriptor = _acquire(path, output, shared)
    _held.add(descriptor)
    try:
        with suppress(OSError):  # who holds it is for the message only; the disk may be full
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(this_process()).encode(), 0)
        yield
    finally:
        if descriptor in _held:  # a forked child that leaves the block has closed it
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            _held.discard(descriptor)
            os.close(descriptor)


def _acquire(path: Path, output: str, shared: bool) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                logger.warning("%s: this file system has no locks, so nothing stops a second writer.", path.parent)
                return descriptor
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise refusal(output, holder) from None
            raise
        os.close(descriptor)  # its holder removed the file between the two calls


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
