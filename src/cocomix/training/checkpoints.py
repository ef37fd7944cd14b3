"""Crash-safe checkpoints: written to a temporary folder, hashed, renamed; incomplete ones are skipped on resume.

What a failing disk or a careless copy does to one later is found by its hashes, and the checkpoint before is used.

The Trainer's optimizer, scheduler and random states are files of `torch.save`; it reads them with `weights_only=True`,
which builds tensors and plain containers and runs nothing.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from accelerate.utils.constants import FSDP_MODEL_NAME
from pydantic import Field
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cocomix.artifacts import Artifact, Damaged, Manifest, NotAnArtifact, seal
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)

WRITING = "writing"
"""Folder beside the checkpoints in which the next one is written."""


class CheckpointManifest(Manifest):
    """What the Trainer's own files do not hold."""

    seconds: float = Field(ge=0)  # of training so far
    meter: Any = None  # state of the loss meter
    skipped: tuple[int, int] = (0, 0)  # steps left out because of gradients that were not finite: all, and in a row
    tokens_per_step: int = 0  # of all processes together


class Checkpoint(Artifact[CheckpointManifest]):
    """A checkpoint of an unfinished run."""

    kind = "checkpoint"
    version = 5
    manifest_type = CheckpointManifest
    made_by = "cocomix train"

    @property
    def _repair(self) -> str:
        return "remove it: the same `cocomix train` then goes on from the checkpoint before"

    @classmethod
    def seal(cls, folder: Path, manifest: CheckpointManifest) -> None:
        """Make a folder with all files written a checkpoint, and flush it to the disk."""
        seal(folder, manifest.model_copy(update={"kind": cls.kind, "version": cls.version}))

    @classmethod
    def require_whole(cls, folder: Path) -> Self:
        """Open a checkpoint and read all of it; a `CoCoMixError` says what of it is missing or damaged."""
        checkpoint = cls.open(folder)
        for fault in checkpoint.verify().broken:
            raise Damaged(fault.detail, fault.what)
        return checkpoint


@contextmanager
def explained_checkpoint(folder: Path) -> Iterator[None]:
    """Say in one sentence that a checkpoint cannot be gone on from, although the hashes of its files are right.

    `torch.load` refuses all but tensors and plain containers, and readers of damaged files raise errors of many kinds.
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


def check_kind(checkpoint: Path, sharded: bool) -> None:
    """Refuse to go on with the other kind of checkpoint; the same recipe gives either, depending on the launcher."""
    if (checkpoint / f"{FSDP_MODEL_NAME}.bin").exists() != sharded:
        was = "without" if sharded else "with"
        raise CoCoMixError(
            f"{checkpoint} was written {was} FSDP; go on {was} it, or start again with another --output."
        )


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint under `folder`; torn ones that are newer are removed, each with a warning."""
    shutil.rmtree(folder / WRITING, ignore_errors=True)
    for path in reversed(checkpoints_in(folder)):
        try:
            Checkpoint.require_whole(path)
        except (NotAnArtifact, Damaged) as fault:
            logger.warning(f"{fault} It is removed now.")
            shutil.rmtree(path, ignore_errors=True)
        else:
            return path
    return None


def weights_are_finite(model: nn.Module, accelerator: Any) -> bool:
    """Whether all weights are numbers, on all processes, also where each has a share of them."""
    shares = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
    bad = torch.stack([share.detach().isfinite().logical_not().sum() for share in shares]).sum()
    return int(accelerator.reduce(bad, "sum")) == 0


def publish(folder: Path, manifest: CheckpointManifest, state: TrainerState, keep: int | None) -> None:
    """Seal the checkpoint that was written in the folder `WRITING`, give it its name, and drop old ones.

    The `keep` newest and the best one are left; all, where `keep` is `None` or 0.
    """
    name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    written, whole = folder / WRITING / name, folder / name
    (written / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle; the recipe says the same
    if state.best_model_checkpoint == str(written):
        state.best_model_checkpoint = str(whole)
        state.save_to_json(str(written / TRAINER_STATE_NAME))
    Checkpoint.seal(written, manifest)
    shutil.rmtree(whole, ignore_errors=True)
    written.rename(whole)
    written.parent.rmdir()
    best = state.best_model_checkpoint
    for path in checkpoints_in(folder)[: -keep if keep else 0]:  # by step: the machine's clock may have jumped
        if best is None or path.resolve() != Path(best).resolve():
            shutil.rmtree(path, ignore_errors=True)


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints under `folder`, whole or not, by rising step."""
    return sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=checkpoint_step)
