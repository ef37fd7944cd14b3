"""Outputs appear whole or not at all: everything is written aside and renamed."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cocomix.artifacts import uploads
from cocomix.artifacts.remote import url_of
from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "PLAN",
    "aside_path",
    "claim_partial",
    "explained_full_disk",
    "fingerprint_json",
    "flush_folder",
    "partial_path",
    "read_json",
    "require_free",
    "staged_directory",
    "write_json",
    "write_once",
    "write_text",
]


PLAN = "plan.json"
"""Within a partial folder that can be continued: what it will be, see `claim_partial`."""


def partial_path(output: Path) -> Path:
    """Where `output` is built until it is whole: `NAME.partial` beside it, so that the final rename is atomic.

    Of a URL, beside the place in the cache from which it is uploaded.
    """
    if (url := url_of(output)) is not None:
        output = uploads.made_at(url)
    if output.name in ("", ".."):  # `.` and `..` have no name of their own
        output = output.resolve()
    return output.with_name(output.name + ".partial")


@contextmanager
def staged_directory(output: Path, *, resume: bool = False) -> Iterator[Path]:
    """Yield a folder beside `output` that is flushed and renamed to `output` when the block ends without an error.

    What is made for a URL is uploaded then; a failed upload leaves it whole in the cache.

    Args:
        output: the folder to create; must not exist yet, or be empty. May be a URL (see `cocomix.artifacts.remote`).
        resume: keep what an interrupted earlier run left in the partial folder, and keep it again if this run is
            interrupted. Otherwise the partial folder starts empty and is removed on any error.

    Raises:
        CoCoMixError: `output` exists and is not an empty folder, its parent cannot be written to, or the disk is full.
    """
    url = url_of(output)
    if url is None:
        require_free(output)
    else:
        uploads.begin(url)
    staging = partial_path(output)
    try:
        if staging.exists() and not resume:
            shutil.rmtree(staging)
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CoCoMixError(f"cannot write to {staging.parent}: {error.strerror}; choose another --output.") from error
    try:
        with explained_full_disk(output):
            yield staging
    except BaseException:
        if not resume:
            shutil.rmtree(staging, ignore_errors=True)
            if url is not None:
                uploads.abandon(url)
        raise
    _discard_asides(staging)
    flush_folder(staging)
    if url is not None:
        staging.rename(made := uploads.made_at(url))
        uploads.publish(made, url)
        return
    if output.exists():
        output.rmdir()
    staging.rename(output)


def require_free(output: Path) -> None:
    """Refuse an output that is there already and no empty folder, or is the current folder.

    Raises:
        CoCoMixError: it is.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise CoCoMixError(f"{output} already exists; remove it or choose another --output.")
    if output.resolve() == Path.cwd():
        raise CoCoMixError("the current folder cannot be written as a whole; name a new folder with --output.")


def flush_folder(folder: Path) -> None:
    """Have the disk hold every file under `folder`, so that a rename after it cannot be kept without the content.

    A file that goes meanwhile is left out: another job that writes to the folder had it aside.
    """
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or os.name == "posix":  # other systems do not open folders
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def claim_partial(
    folder: Path, identity: Mapping[str, Any], output: Path, notes: Mapping[str, Any] | None = None
) -> None:
    """Record in `PLAN` what a partial folder is of, or check that an interrupted run was of the same.

    Of several processes that begin one folder at once, one records its plan and the others are compared with it.

    Args:
        folder: from `staged_directory(output, resume=True)`; whoever completes it removes the plan.
        identity: everything that determines the result, as JSON.
        output: the folder it becomes.
        notes: recorded too, but not compared.

    Raises:
        CoCoMixError: the folder holds something else, or was begun with another identity (the keys are named).
    """
    plan = folder / PLAN
    if not plan.exists():
        others = [path for path in folder.iterdir() if path not in _left_aside(plan)]
        if others and not plan.exists():  # it may have come between
            raise CoCoMixError(f"{partial_path(output)} holds something else; remove it or choose another --output.")
        write_once(plan, {**identity, **(notes or {})})
    found = read_json(plan)
    differing = [key for key, value in identity.items() if found.get(key) != value]
    if differing:
        raise CoCoMixError(
            f"{partial_path(output)} was begun with another {', '.join(differing)}; remove it or choose another "
            "--output."
        )


@contextmanager
def explained_full_disk(folder: Path) -> Iterator[None]:
    """Say in one sentence that the disk is full, whichever library finds out while it writes to `folder`.

    Raises:
        CoCoMixError: there is no room. safetensors, tokenizers and `torch.save` raise errors of their own for it.
    """
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


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write UTF-8 text aside, flush it to the disk and rename it over `path`.

    Args:
        path: the file.
        text: its content.
        shared: another process may be writing it at this moment. Otherwise what a killed one left is tidied up.
    """
    if not shared:
        for left in _left_aside(path):
            left.unlink(missing_ok=True)
    aside = aside_path(path)
    try:
        _write_flushed(aside, text)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_once(path: Path, value: Any) -> bool:
    """Write a JSON file unless it exists, whole at once; of several processes that try, exactly one does.

    Where the file system has no hard links, several may, and the last one stays.

    Returns:
        Whether this call wrote it.
    """
    aside = aside_path(path)
    try:
        _write_flushed(aside, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        try:
            os.link(aside, path)
        except OSError:  # another was faster, or there are no hard links
            if path.exists():
                return False
            aside.replace(path)
        return True
    finally:
        aside.unlink(missing_ok=True)


def aside_path(path: Path) -> Path:
    """A name of its own for every call, beside `path`, under which its content is written before it is renamed."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def _discard_asides(folder: Path) -> None:
    """Remove what killed processes left half written anywhere in a folder that nobody writes to any more."""
    for left in folder.rglob(".*.tmp"):
        left.unlink(missing_ok=True)


def _left_aside(path: Path) -> list[Path]:
    """What was being written to become `path` when its process was killed."""
    return list(path.parent.glob(f".{path.name}.*.tmp"))


def _write_flushed(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_json(path: Path, value: Any, *, shared: bool = False) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused by `json` as a programming error.

    Args:
        path: the file.
        value: its content.
        shared: as of `write_text`.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", shared=shared)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CoCoMixError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CoCoMixError(f"{path} does not exist; is {path.parent} the right folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CoCoMixError(f"{path} is not valid JSON ({error}); rebuild the folder it belongs to.") from error


def fingerprint_json(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, independent of key order and whitespace."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
