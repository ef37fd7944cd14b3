"""Checkpoints that are whole or are not used.

A checkpoint is written in the folder `writing`, sealed with the SHA-256 of each of its files, flushed to the disk and
renamed to `checkpoint-STEP`. So a stop leaves no half of one under that name; what a failing disk or a careless copy
does to it later is found by its hashes, and the checkpoint before is used.

The Trainer's optimizer, scheduler and random states are files of `torch.save`; it reads them with `weights_only=True`,
which builds tensors and plain containers and runs nothing.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cocomix.artifacts.hashing import file_sha256
from cocomix.artifacts.output import flush_folder, read_json, write_json
from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "MARK",
    "WRITING",
    "checkpoint_fault",
    "checkpoint_step",
    "drop_old_checkpoints",
    "explained_checkpoint",
    "last_complete_checkpoint",
    "seal_checkpoint",
]

logger = logging.getLogger(__name__)

MARK = "complete"
"""File that ends a checkpoint: hashes of the others, and the meters' state."""
WRITING = "writing"
"""Folder beside the checkpoints in which the next one is written."""


def seal_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the mark of a checkpoint and flush all of it to the disk.

    Args:
        folder: with all files written.
        state: what else the mark keeps, as JSON.
    """
    files = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    write_json(folder / MARK, {**state, "files": files})
    flush_folder(folder)


def checkpoint_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; `None` for a whole one. Reads all of it."""
    if not (folder / MARK).is_file():
        return "was not written to its end"
    try:
        files = read_json(folder / MARK)["files"]
        for name, sha256 in files.items():
            if not (folder / name).is_file():
                return f"lacks {name}"
            if file_sha256(folder / name) != sha256:
                return f"has a damaged {name}"
    except (CoCoMixError, KeyError, TypeError, AttributeError):
        return f"has a damaged {MARK}"
    return None


@contextmanager
def explained_checkpoint(folder: Path) -> Iterator[None]:
    """Say in one sentence that a checkpoint cannot be gone on from, whatever was found in one of its files.

    Raises:
        CoCoMixError: a file is not what belongs there, although its hash is the recorded one: `torch.load` refuses all
            but tensors and plain containers, and readers of damaged files raise errors of many kinds.
    """
    try:
        yield
    except (CoCoMixError, OSError):
        raise
    except Exception as error:
        raise CoCoMixError(
            f"{folder} holds something else than the weights and states of a run ({type(error).__name__}), and nothing "
            "of it was run; do not trust it: remove it, and the same `cocomix train` goes on from the "
            "checkpoint before."
        ) from error


def checkpoint_step(folder: Path) -> int:
    """The optimizer step a checkpoint was written after."""
    return int(folder.name.rpartition("-")[2])


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint under `folder`; torn ones that are newer are removed, each with a warning."""
    shutil.rmtree(folder / WRITING, ignore_errors=True)
    for path in reversed(_by_step(folder)):
        fault = checkpoint_fault(path)
        if fault is None:
            return path
        logger.warning(f"{path} {fault} and is removed; training goes on from the checkpoint before.")
        shutil.rmtree(path, ignore_errors=True)
    return None


def drop_old_checkpoints(folder: Path, keep: int | None, best: str | None) -> None:
    """Remove all but the newest `keep` checkpoints (by step: the machine's clock may have jumped) and the best one.

    Args:
        folder: of the checkpoints.
        keep: how many to leave at least; all where it is `None` or 0.
        best: path of one that stays in any case.
    """
    if keep:
        for path in _by_step(folder)[:-keep]:
            if best is None or path.resolve() != Path(best).resolve():
                shutil.rmtree(path, ignore_errors=True)


def _by_step(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=checkpoint_step)
