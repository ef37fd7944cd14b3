"""Outputs appear whole or not at all: everything is written aside and renamed."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cocomix.errors import CoCoMixError

__all__ = [
    "PLAN",
    "claim_partial",
    "explained_full_disk",
    "fingerprint_json",
    "flush_folder",
    "partial_path",
    "read_json",
    "staged_directory",
    "write_json",
    "write_text",
]


PLAN = "plan.json"
"""Within a partial folder that can be continued: what it will be, see `claim_partial`."""


def partial_path(output: Path) -> Path:
    """Where `output` is built until it is whole: `NAME.partial` beside it, so that the final rename is atomic."""
    if output.name in ("", ".."):  # `.` and `..` have no name of their own
        output = output.resolve()
    return output.with_name(output.name + ".partial")


@contextmanager
def staged_directory(output: Path, *, resume: bool = False) -> Iterator[Path]:
    """Yield a folder beside `output` that is flushed and renamed to `output` when the block ends without an error.

    Args:
        output: the folder to create; must not exist yet, or be empty.
        resume: keep what an interrupted earlier run left in the partial folder, and keep it again if this run is
            interrupted. Otherwise the partial folder starts empty and is removed on any error.

    Raises:
        CoCoMixError: `output` exists and is not an empty folder, or its parent cannot be written to.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise CoCoMixError(f"{output} already exists; remove it or choose another --output.")
    if output.resolve() == Path.cwd():
        raise CoCoMixError("the current folder cannot be written as a whole; name a new folder with --output.")
    staging = partial_path(output)
    try:
        if staging.exists() and not resume:
            shutil.rmtree(staging)
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CoCoMixError(f"cannot write to {staging.parent}: {error.strerror}; choose another --output.") from error
    try:
        yield staging
    except BaseException:
        if not resume:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    flush_folder(staging)
    if output.exists():
        output.rmdir()
    staging.rename(output)


def flush_folder(folder: Path) -> None:
    """Have the disk hold every file under `folder`, so that a rename after it cannot be kept without the content."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or os.name == "posix":  # other systems do not open folders
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def claim_partial(folder: Path, identity: dict[str, Any], output: Path) -> None:
    """Record in `PLAN` what a partial folder is of, or check that an interrupted run was of the same.

    Args:
        folder: from `staged_directory(output, resume=True)`; whoever completes it removes the plan.
        identity: everything that determines the result, as JSON.
        output: the folder it becomes.

    Raises:
        CoCoMixError: the folder holds something else, or was begun with another identity (the keys are named).
    """
    plan = folder / PLAN
    if not plan.exists():
        if any(path not in _left_aside(plan) for path in folder.iterdir()):
            raise CoCoMixError(f"{partial_path(output)} holds something else; remove it or choose another --output.")
        write_json(plan, identity)
        return
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
        CoCoMixError: there is no room. safetensors and `torch.save` raise errors of their own for it.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full_disk = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        told = any(clue in str(error) for clue in ("No space left", "Disk quota exceeded", "inline_container.cc"))
        if isinstance(error, CoCoMixError) or not (full_disk or told):
            raise
        raise CoCoMixError(
            f"cannot write {folder}: No space left on device; make room and run the same command again to go on."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text aside, flush it to the disk and rename it over `path`; tidies up after a killed process."""
    for left in _left_aside(path):
        left.unlink(missing_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _left_aside(path: Path) -> list[Path]:
    """What `write_text` was writing to become `path` when its process was killed."""
    return list(path.parent.glob(f".{path.name}.*.tmp"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused by `json` as a programming error."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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
