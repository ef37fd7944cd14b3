"""Typed errors of artefacts: what is wrong with a folder, as classes that callers can tell apart.

Everything that identifies the fault is an attribute with a default, so that the errors pickle (worker processes raise
them).
"""

from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "AlreadyExists",
    "BeingWritten",
    "Damaged",
    "MadeFromSomethingElse",
    "NotAnArtifact",
    "OutsideFolder",
    "Unreachable",
    "WrongKind",
    "WrongVersion",
]


class NotAnArtifact(CoCoMixError):
    """There is no folder, or it has no `manifest.json`: it is something else, or unfinished."""


class WrongKind(CoCoMixError):
    """The folder is an artefact of another kind than the one asked for."""


class WrongVersion(CoCoMixError):
    """The folder was written in a format that this version does not read."""


class Damaged(CoCoMixError):
    """A file is missing, truncated or not the one that the manifest describes.

    Attributes:
        file: its name within the artefact.
    """

    def __init__(self, message: str, file: str = "") -> None:
        super().__init__(message)
        self.file = file


class MadeFromSomethingElse(CoCoMixError):
    """What is there, or was begun, does not belong to what was given.

    Attributes:
        keys: names of the settings or inputs that differ.
    """

    def __init__(self, message: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys


class AlreadyExists(CoCoMixError):
    """The output is there.

    Attributes:
        keys: names of the settings or inputs that differ from those it was made with; empty where none is known to.
    """

    def __init__(self, message: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys


class BeingWritten(CoCoMixError):
    """Another process writes this output.

    Attributes:
        host: the machine it runs on.
        pid: its process number there; 0 if it is not known.
    """

    def __init__(self, message: str, host: str = "", pid: int = 0) -> None:
        super().__init__(message)
        self.host = host
        self.pid = pid


class OutsideFolder(CoCoMixError):
    """A name in a manifest or in a bucket's listing leads out of its folder.

    Attributes:
        name: the name.
    """

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class Unreachable(CoCoMixError):
    """A file system cannot be reached, also after several attempts. Says nothing about the data there."""
