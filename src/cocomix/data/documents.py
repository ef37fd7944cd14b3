"""What a source is: files, folders, Hugging Face data sets, token files, or the documentation on this machine.

`docs:` is the documentation; a URL is a file or folder elsewhere; anything that exists on the disk is a file or a
folder; any other name with at most one slash that does not look like a path is a data set on the Hugging Face Hub.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cocomix.artifacts import RemoteFolder, explained, file_system, fingerprint_json, url_of
from cocomix.data.reading import SUPPORTED_SUFFIXES, file_kind
from cocomix.runtime.errors import CoCoMixError

DOCUMENTATION = "docs:"  # the source that stands for the documentation on this machine

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")  # what a data set on the Hugging Face Hub is called

TOKEN_SUFFIXES = (".bin", ".npy", ".ds")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, or a range of one; of a source without files, its name."""

    where: str  # path or URL
    size: int  # bytes of it, of the range; 0 where it is not known
    changed: str = ""  # when it was last changed, in whatever form its file system says it; "" where it does not
    start: int = 0  # of the range, see `read_texts`; for a data set on the Hub, the number of a shard
    # its end; `None` where it is the whole file; for a data set on the Hub, how many shards there are
    stop: int | None = None


@dataclass(frozen=True)
class Source:
    """A source whose kind is known."""

    name: str  # as the user gave it
    kind: Literal["files", "hub", "documentation", "tokens"]  # decides how it is read
    files: tuple[SourceFile, ...] = ()  # to read, in order, for kinds `files` and `tokens`
    ignored: int = 0  # files of a folder that are of no supported kind
    hub: dict[str, Any] = field(default_factory=dict)  # configuration, split and revision for kind `hub`
    heldout: tuple[SourceFile, ...] = ()  # of a folder of token files, the files that validate
    validates: bool = False  # whether it was given as a source of the validation split

    def identity(self) -> dict[str, Any]:
        """What determines its documents, as JSON: of files their names, sizes and times of change."""
        if self.kind == "documentation":
            from cocomix.data.documentation import documentation_identity

            return {"name": self.name, "content": documentation_identity()}
        files = [[file.where, file.size, file.changed] for file in (*self.files, *self.heldout)]
        return {"name": self.name, "content": fingerprint_json({"files": files, "hub": self.hub})}


def resolve_sources(names: Iterable[str], hub: dict[str, Any] | None = None) -> list[Source]:
    """Find out what every source is, as the module's docstring tells; nothing is read.

    `hub` holds `name` (configuration), `split` and `revision` of data sets on the Hub. Raises `CoCoMixError` where a
    path does not exist, is of no supported kind or holds no such file, or a file is given twice.
    """
    names = tuple(names)
    for name in names:
        if names.count(name) > 1:
            raise CoCoMixError(f"{name} is given twice; name each source once.")
    sources = [_resolve(name, hub or {}) for name in names]
    seen: dict[str, str] = {}
    for source in sources:
        for file in (*source.files, *source.heldout):
            key = file.where if url_of(file.where) else os.path.realpath(file.where)
            if key in seen:
                raise CoCoMixError(f"{key} is given twice (by {seen[key]} and {source.name}); name each source once.")
            seen[key] = source.name
    return sources


def _resolve(name: str, hub: dict[str, Any]) -> Source:
    if name == DOCUMENTATION:
        return Source(name, "documentation")
    if (url := url_of(name)) is not None:
        return _remote(name, url)
    path = Path(name).expanduser()
    if path.exists():
        name = str(Path(name))  # `texts/` is `texts`
    if path.is_dir():
        return _folder(name, path)
    if path.exists():
        kind: Literal["files", "tokens"] = "tokens" if path.suffix in TOKEN_SUFFIXES else "files"
        if kind == "files" and file_kind(path.name) is None:
            raise CoCoMixError(f"{name} is not a supported kind of file; use {SUPPORTED_SUFFIXES}.")
        return Source(name, kind, (_local(path),))
    if _HUB_NAME.fullmatch(name) and file_kind(name) is None and path.suffix not in TOKEN_SUFFIXES:
        return Source(name, "hub", hub=hub)
    raise CoCoMixError(
        f"{name} does not exist; give a file, a folder, a Hugging Face data set name or {DOCUMENTATION!r}."
    )


def _local(path: Path) -> SourceFile:
    found = path.stat()
    return SourceFile(str(path), found.st_size, str(found.st_mtime_ns))


def _folder(name: str, folder: Path) -> Source:
    if (folder / "train.bin").is_file():
        heldout = (_local(folder / "val.bin"),) if (folder / "val.bin").is_file() else ()
        return Source(name, "tokens", (_local(folder / "train.bin"),), heldout=heldout)
    found: list[str] = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [subfolder for subfolder in subfolders if not subfolder.startswith(".")]  # .git may be large
        found += (Path(parent, inner).relative_to(folder).as_posix() for inner in names)
    return _of_folder(name, f"the folder {name}", found, lambda inner: _local(folder / inner), TOKEN_SUFFIXES)


def _remote(name: str, url: str) -> Source:
    sizes = RemoteFolder(url).files()
    if sizes:
        return _of_folder(name, url, sizes, lambda inner: SourceFile(f"{url}/{inner}", sizes[inner]))
    system, path = file_system(url)
    with explained(url):
        size = int(system.info(path)["size"] or 0)
    if file_kind(url) is None:
        raise CoCoMixError(f"{url} is not a supported kind of file; use {SUPPORTED_SUFFIXES}.")
    return Source(name, "files", (SourceFile(url, size),))


def _of_folder(
    name: str, shown: str, found: Iterable[str], file: Callable[[str], SourceFile], token_suffixes: tuple[str, ...] = ()
) -> Source:
    """The texts among the files found below a folder, else its token files; hidden ones are not even counted."""
    paths = sorted(PurePosixPath(inner) for inner in found if not any(p.startswith(".") for p in inner.split("/")))
    texts = [path for path in paths if file_kind(path.name)]
    taken = texts or [path for path in paths if path.suffix in token_suffixes]
    if not taken:
        raise CoCoMixError(f"{shown} holds no file of a supported kind; those are {SUPPORTED_SUFFIXES}.")
    files = tuple(file(str(path)) for path in taken)
    return Source(name, "files" if texts else "tokens", files, len(paths) - len(taken))
