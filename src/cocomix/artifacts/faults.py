"""Errors of artefacts, one class for each thing a caller may want to tell apart.

What identifies the fault is in attributes that have defaults, so that the errors pickle: workers raise them.
"""

import errno
from pathlib import Path

from cocomix.runtime.errors import CoCoMixError


class NotAnArtifact(CoCoMixError):
    """There is no folder, or it has no `manifest.json`: it is something else, or unfinished."""


class WrongKind(CoCoMixError):
    """The folder is an artefact of another kind than the one asked for."""


class WrongVersion(CoCoMixError):
    """The folder was written in a format that this version does not read."""


class Unreachable(CoCoMixError):
    """A file system cannot be reached, also after several attempts. Says nothing about the data there."""


class Damaged(CoCoMixError):
    """A file, named in `file`, is missing, truncated or not the one that the manifest describes."""

    def __init__(self, message: str, file: str = "") -> None:
        super().__init__(message)
        self.file = file


class OutsideFolder(Damaged):
    """The name in `file`, from a manifest or a bucket's listing, leads out of its folder."""


class MadeFromSomethingElse(CoCoMixError):
    """What is there, or was begun, differs from what was given in the settings or inputs named in `keys`."""

    def __init__(self, message: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys


class AlreadyExists(MadeFromSomethingElse):
    """The output is there; `keys` is empty where nothing is known to differ."""


class BeingWritten(CoCoMixError):
    """Process `pid` (0 if unknown) on the machine `host` writes this output."""

    def __init__(self, message: str, host: str = "", pid: int = 0) -> None:
        super().__init__(message)
        self.host = host
        self.pid = pid


_REMEDIES = {
    errno.ENOMEM: "the system has no memory or no map left (vm.max_map_count, ulimit -v); end other work and try again",
    errno.EMFILE: "this process has too many files open; raise `ulimit -n`",
    errno.ENFILE: "the system has too many files open; end other work and try again",
    errno.EACCES: "check its permissions",
}


def unreadable(path: Path, error: OSError) -> CoCoMixError:
    """The error for a file that the system could not open, read or map: that says nothing about what is in it."""
    remedy = _REMEDIES.get(error.errno or 0, "check the disk or the network file system")
    return CoCoMixError(f"cannot read {path}: {error.strerror or error}; {remedy}.")
