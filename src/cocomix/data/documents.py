"""Documents out of sources: files, folders, Hugging Face data sets and the documentation on this machine.

What a source is, is decided by `resolve_sources`: `docs:` is the documentation; a URL is a file or folder elsewhere
(see `cocomix.artifacts.remote`); anything that exists on the disk is a
file or a folder; any other name with at most one slash that does not look like a path is a data set on the Hugging
Face Hub. `read_documents` then streams the documents, one at a time.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cocomix.artifacts.remote import url_of
from cocomix.data.decoding import text_of
from cocomix.data.documentation import DocumentationEntry, documentation_entries, documentation_texts
from cocomix.data.formats import SUPPORTED_SUFFIXES, FileText, file_format, read_texts
from cocomix.data.remote_files import RemoteFile, remote_files, remote_texts
from cocomix.runtime.errors import CoCoMixError

__all__ = ["DOCUMENTATION", "HUB_NAME", "Document", "Source", "read_documents", "resolve_sources"]

DOCUMENTATION = "docs:"
"""The source that stands for the documentation on this machine."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""What a data set on the Hugging Face Hub is called."""


@dataclass(frozen=True)
class Document:
    """One document, or one piece of a very long plain text."""

    text: str
    """Never empty."""
    source: str
    """The source it comes from, as the user gave it."""
    number: int
    """Place in the stream, from 0; pieces of one document share it."""
    last: bool = True
    """Whether the document ends with this text."""
    invalid_utf8: int = 0
    """Characters of the text that stand for bytes that were not UTF-8."""
    read: int = 0
    """Bytes of input used up since the document before, for progress bars; compressed bytes where compressed."""


@dataclass(frozen=True)
class Source:
    """A source whose kind is known."""

    name: str
    """As the user gave it."""
    kind: str
    """`files`, `hub` or `documentation`."""
    files: tuple[Path, ...] = ()
    """The files to read, in order, for kind `files`."""
    remote: tuple[RemoteFile, ...] = ()
    """The files to stream, in order, for kind `files`, where the source is a URL."""
    entries: tuple[DocumentationEntry, ...] = ()
    """What to read, in order, for kind `documentation`."""
    ignored: int = 0
    """How many files of a folder are of no supported kind."""
    hub_arguments: dict[str, Any] = field(default_factory=dict)
    """Configuration, split and revision for kind `hub`."""

    def input_bytes(self) -> int | None:
        """Bytes there are to read; None when unknown."""
        if self.kind == "hub":
            return None
        sizes = [entry.size for entry in self.entries] + [file.size for file in self.remote]
        return sum(sizes) + sum(path.stat().st_size for path in self.files)


def resolve_sources(
    names: Iterable[str], *, hf_config: str | None = None, hf_split: str = "train", hf_revision: str | None = None
) -> list[Source]:
    """Find out what every source is, before anything is read.

    Args:
        names: `docs:`, paths, URLs, or names of data sets on the Hugging Face Hub.
        hf_config: configuration of the data sets on the Hub.
        hf_split: split of the data sets on the Hub that is read.
        hf_revision: commit, tag or branch of the data sets on the Hub.

    Raises:
        CoCoMixError: a path does not exist, is of no supported kind or holds no such file, or a file is given twice.
    """
    names = tuple(names)
    for name in names:
        if names.count(name) > 1:
            raise CoCoMixError(f"{name} is given twice; name each source once.")
    hub_arguments = {"name": hf_config, "split": hf_split, "revision": hf_revision}
    sources = [_resolve(name, hub_arguments) for name in names]
    seen: dict[str, str] = {}
    for source in sources:
        for key in (*(str(path.resolve()) for path in source.files), *(file.url for file in source.remote)):
            if key in seen:
                raise CoCoMixError(f"{key} is given twice (by {seen[key]} and {source.name}); name each source once.")
            seen[key] = source.name
    return sources


def _resolve(name: str, hub_arguments: dict[str, Any]) -> Source:
    if name == DOCUMENTATION:
        return Source(name, "documentation", entries=tuple(documentation_entries()))
    if (url := url_of(name)) is not None:
        remote, ignored = remote_files(url)
        return Source(name, "files", remote=remote, ignored=ignored)
    path = Path(name).expanduser()
    if path.is_dir():
        return _resolve_folder(name, path)
    if path.exists():
        if file_format(path) is None:
            raise CoCoMixError(f"{name} is not a supported kind of file; use {SUPPORTED_SUFFIXES}.")
        return Source(name, "files", (path,))
    if HUB_NAME.fullmatch(name) and file_format(path) is None:
        return Source(name, "hub", hub_arguments=hub_arguments)
    raise CoCoMixError(
        f"{name} does not exist; give a file, a folder, a Hugging Face data set name or {DOCUMENTATION!r}."
    )


def _resolve_folder(name: str, folder: Path) -> Source:
    files, ignored = [], 0
    for parent, subfolders, file_names in os.walk(folder):
        subfolders[:] = [subfolder for subfolder in subfolders if not subfolder.startswith(".")]
        for path in (Path(parent, file_name) for file_name in file_names if not file_name.startswith(".")):
            if file_format(path) is None:
                ignored += 1
            else:
                files.append(path)
    if not files:
        raise CoCoMixError(f"the folder {name} holds no file of a supported kind; those are {SUPPORTED_SUFFIXES}.")
    return Source(name, "files", tuple(sorted(files, key=lambda path: path.relative_to(folder).parts)), ignored=ignored)


def read_documents(sources: Iterable[Source], text_column: str = "text") -> Iterator[Document]:
    """Stream the documents of the sources, in order; documents without any text but white space are left out.

    Raises:
        CoCoMixError: a source cannot be read or holds no document.
    """
    number = 0
    for source in sources:
        before, unread, started = number, 0, False
        for text, last, invalid, read in _texts(source, text_column):
            unread += read
            if last and not started and (not text or text.isspace()):
                continue
            yield Document(text, source.name, number, last, invalid, unread)
            unread, started = 0, not last
            number += last
        if number == before:
            raise CoCoMixError(f"{source.name} holds no documents: there is no text in it; give another source.")


def _texts(source: Source, text_column: str) -> Iterator[tuple[str, bool, int, int]]:
    """Text, whether the document ends with it, invalid characters, and bytes of input read for it."""
    if source.kind == "hub":
        yield from _hub_texts(source, text_column)
    for entry, text in documentation_texts(source.entries):
        clean, invalid = text_of(text, entry.name, text_column)
        yield clean, True, invalid, entry.size
    for path in source.files:
        yield from _file_texts(path, text_column)
    for file in source.remote:
        yield from _with_bytes_read(remote_texts(file, text_column))


def _file_texts(path: Path, text_column: str) -> Iterator[tuple[str, bool, int, int]]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise CoCoMixError(f"cannot read {path}: {error.strerror}; check the path and its permissions.") from error
    with stream:
        yield from _with_bytes_read(read_texts(path, stream, text_column))


def _with_bytes_read(texts: Iterable[FileText]) -> Iterator[tuple[str, bool, int, int]]:
    position = 0
    for piece in texts:
        yield piece.text, piece.last, piece.invalid, piece.position - position
        position = piece.position


def _hub_texts(source: Source, text_column: str) -> Iterator[tuple[str, bool, int, int]]:
    for number, row in enumerate(_load_hub_rows(source)):
        where = f"{source.name}, row {number}"
        if text_column not in row:
            raise CoCoMixError(
                f"{where}: there is no column {text_column!r}; the columns are {', '.join(map(repr, row))}; "
                "choose one with --text-column."
            )
        text, invalid = text_of(row[text_column], where, text_column)
        yield text, True, invalid, 0


def _load_hub_rows(source: Source) -> Iterable[dict[str, Any]]:
    import datasets

    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(source.name, streaming=True, **source.hub_arguments)
    except Exception as error:  # the Hub client raises errors of many unrelated kinds
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise CoCoMixError(
            f"{source.name} is not a path here, and not a data set that the Hugging Face Hub gives ({reason}); "
            "check the name, the configuration and the split."
        ) from error
    return rows
