"""Small files, written whole or not at all; content hashes; and the one check of names that others gave."""

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocomix.artifacts.faults import OutsideFolder
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from torch import Tensor


def check_name(name: str) -> str:
    """`name`, once it is seen to be a relative POSIX path that stays in its folder on every system."""
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or "\\" in name or "\0" in name or ":" in parts[0]:
        raise OutsideFolder(f"the name {name!r} leads out of its folder; do not use what it comes from.", name)
    return name


def inside(folder: Path, name: str) -> Path:
    """The path of a file whose name comes from a manifest or a bucket; every such name goes through here."""
    path = folder / check_name(name)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OutsideFolder(f"{path} is a link out of {folder}; do not use this folder.", name)
    return path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Write a file aside, flush it to the disk and rename it over `path`, also where several processes do so.

    Yields a name of its own beside `path`, to write to; on an error it is removed.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield aside
        flush(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; the file appears when it is whole."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused by `json` as a programming error."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; refused where it is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CoCoMixError(f"{path} does not exist; is {path.parent} the right folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CoCoMixError(f"{path} is not valid JSON ({error}); rebuild the folder it belongs to.") from error


def flush(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder. A file that another process took away is left out."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush_folder(folder: Path, scratch: Collection[str] = ()) -> None:
    """Flush everything under `folder` but scratch, so that a rename after it cannot be kept without the content."""
    for path in (*_below(folder, scratch), folder):
        flush(path)


def file_names(folder: Path, scratch: Collection[str] = ()) -> list[str]:
    """POSIX names of all files below a folder, in order; what lies in `scratch` folders at its top is left out."""
    return sorted(path.relative_to(folder).as_posix() for path in _below(folder, scratch) if not path.is_dir())


def _below(folder: Path, scratch: Collection[str]) -> Iterator[Path]:
    """All files and folders below a folder. Scratch is not even listed: other jobs may be removing it."""
    for path in folder.iterdir():
        if path.name not in scratch:
            yield path
            if path.is_dir():
                yield from path.rglob("*")


@contextmanager
def explained_full_disk(folder: Path) -> Iterator[None]:
    """Say in one sentence that there is no room to write `folder`, for which libraries raise errors of many kinds."""
    try:
        yield
    except Exception as error:
        full_disk = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        told = any(clue in str(error) for clue in ("No space left", "Disk quota exceeded", "inline_container.cc"))
        if isinstance(error, CoCoMixError) or not (full_disk or told):
            raise
        raise CoCoMixError(
            f"cannot write {folder}: No space left on device; make room and run the same command again to go on."
        ) from error


def tensor_sha256(tensor: "Tensor") -> str:
    """SHA-256 (hex) of a tensor's dtype, shape and raw bytes."""
    import torch

    digest = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint_json(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, independent of key order and whitespace."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
