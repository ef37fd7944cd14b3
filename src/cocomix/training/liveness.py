"""Whether an unfinished run is still going on: its process signs in and out in a small file of the run's folder.

A process that was killed could not sign out; the file then names a process that is no more.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from cocomix.artifacts import process_lives, this_process, write_json
from cocomix.runtime.stopping import Terminated

SIGN = "process"
"""The file, JSON; without the suffix of those that a finished run keeps."""


class Liveness(NamedTuple):
    """What is known of an unfinished run's process.

    `detail` is the error, or the other machine that the run was started on, which cannot be asked from here and is
    taken at its word.
    """

    state: Literal["running", "stopped", "failed"]  # stopped by a person, a signal or the machine; failed with an error
    detail: str | None = None


@contextmanager
def signed_in(folder: Path) -> Iterator[None]:
    """Keep the sign of this process in a run's folder while the block runs; afterwards it says how the block ended.

    Nothing is left of it where the block ends without an error.
    """
    sign = this_process()
    write_json(folder / SIGN, {**sign, "state": "running"})
    try:
        yield
    except BaseException as error:
        ended = {"state": "stopped"}
        if not isinstance(error, KeyboardInterrupt | Terminated):
            ended = {"state": "failed", "error": " ".join(str(error).split()) or type(error).__name__}
        with suppress(OSError):  # the disk may be what failed
            write_json(folder / SIGN, {**sign, **ended})
        raise
    (folder / SIGN).unlink(missing_ok=True)


def liveness(folder: Path) -> Liveness:
    """What an unfinished run's folder says about its process; without a legible sign it counts as stopped."""
    try:
        record = (folder / SIGN).read_bytes()
        sign = json.loads(record)
        if sign["state"] == "failed":
            return Liveness("failed", str(sign.get("error")))
        if sign["state"] == "running" and process_lives(record):
            elsewhere = sign["host"] != socket.gethostname()
            return Liveness("running", f"on {sign['host']}" if elsewhere else None)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return Liveness("stopped")
