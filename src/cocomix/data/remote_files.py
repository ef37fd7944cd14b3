"""Source files at URLs, streamed from where they are."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cocomix.artifacts.remote import explained, file_system, listing
from cocomix.data.formats import SUPPORTED_SUFFIXES, FileText, file_format, read_texts
from cocomix.runtime.errors import CoCoMixError

__all__ = ["RemoteFile", "remote_files", "remote_texts"]


class RemoteFile(NamedTuple):
    """A file and its size in bytes."""

    url: str
    size: int


def remote_files(url: str) -> tuple[tuple[RemoteFile, ...], int]:
    """The files of a supported kind that a URL stands for, in order, and how many others a folder holds.

    Raises:
        CoCoMixError: there is nothing, or nothing of a supported kind; it cannot be reached.
    """
    files = listing(url)
    if not files:
        system, path = file_system(url)
        with explained(url):
            size = int(system.info(path)["size"] or 0)
        if file_format(Path(url)) is None:
            raise CoCoMixError(f"{url} is not a supported kind of file; use {SUPPORTED_SUFFIXES}.")
        return (RemoteFile(url, size),), 0
    seen = [name for name in files if not any(part.startswith(".") for part in name.split("/"))]
    found = sorted((name for name in seen if file_format(Path(name))), key=lambda name: PurePosixPath(name).parts)
    if not found:
        raise CoCoMixError(f"{url} holds no file of a supported kind; those are {SUPPORTED_SUFFIXES}.")
    return tuple(RemoteFile(f"{url}/{name}", files[name]) for name in found), len(seen) - len(found)


def remote_texts(file: RemoteFile, text_column: str) -> Iterator[FileText]:
    """The documents of a file, as `read_texts` gives them.

    Raises:
        CoCoMixError: as `read_texts`; the file cannot be reached.
    """
    system, path = file_system(file.url)
    name = Path(file.url)
    try:
        with explained(file.url), system.open(path, "rb") as stream:
            yield from read_texts(name, stream, text_column)
    except CoCoMixError as error:  # `Path` dropped a slash
        raise CoCoMixError(str(error).replace(str(name), file.url)) from error
