"""Whether an unfinished run is still going on: its process signs in and out in a small file of the run's folder.

A process that was killed could not sign out; the file then names a process that is no more.
"""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from cocomix.artifacts import write_json
from cocomix.runtime.stopping import Terminated

SIGN = "process"
"""The file, JSON; without the suffix of those that a finished run keeps."""

State = Literal["running", "stopped", "failed"]


class Liveness(NamedTuple):
    """What is known of an unfinished run's process.

    Attributes:
        state: `running`; `stopped`, by a person, a signal or the machine; or `failed` with an error.
        detail: the error, or the other machine that the run was started on, which cannot be asked from here and is
            taken at its word.
    """

    state: State
    detail: str | None = None


@contextmanager
def signed_in(folder: Path) -> Iterator[None]:
    """Keep the sign of this process in a run's folder while the block runs; afterwards it says how the block ended.

    Nothing is left of it where the block ends without an error.
    """
    sign = {"host": socket.gethostname(), "pid": (process := psutil.Process()).pid, "created": process.create_time()}
    write_json(folder / SIGN, {**sign, "state": "running"})
    try:
        yield
    except BaseException as error:
        ended = {"state": "stopped"}
        if not isinstance(error, KeyboardInterrupt | Terminated):
            ended = {"state": "failed", "error": " ".join(str(error).split()) or type(error).__name__}
        with suppress(OSError):  # the disk may be what failed
            write_json(folder / SIGN, {**sign, **ended, "at": time.time()})
        raise
    (folder / SIGN).unlink(missing_ok=True)


def liveness(folder: Path) -> Liveness:
    """What an unfinished run's folder says about its process; without a legible sign it counts as stopped."""
    try:
        sign: dict[str, Any] = json.loads((folder / SIGN).read_text(encoding="utf-8"))
        state, host, pid, created = sign["state"], sign["host"], int(sign["pid"]), float(sign["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return Liveness("stopped")
    if state == "failed":
        return Liveness("failed", str(sign.get("error")))
    if state != "running":
        return Liveness("stopped")
    if host != socket.gethostname():
        return Liveness("running", f"on {host}")
    return Liveness("running" if _lives(pid, created) else "stopped")


def _lives(pid: int, created: float) -> bool:
    """Whether the process of that number is still the one that was created then."""
    try:
        return bool(abs(psutil.Process(pid).create_time() - created) < 1.0)  # seconds; numbers are used again
    except psutil.Error:
        return False
