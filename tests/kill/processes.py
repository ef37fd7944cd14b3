"""`cocomix` commands as processes that start at once: children of a process that has imported everything already.

The parent only imports and computes nothing, so that no thread of its own is lost in a child.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import cocomix.cli
import cocomix.labelling.make_labels
from cocomix.concepts.saelens import import_sae_lens
from cocomix.data import preparation
from cocomix.evaluation import run_evaluation
from cocomix.interpret import atlas_build
from cocomix.training import trainer

__all__ = ["IMPORTED", "Ended", "run"]

IMPORTED = (cocomix.labelling.make_labels, preparation, run_evaluation, atlas_build, trainer, import_sae_lens())
"""What the verbs import when they are called."""
_POLL_SECONDS = 0.0005


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        killed: by `run`, while it was going on.
        status: its exit status, if it was not killed.
        seconds: from its start.
    """

    killed: bool
    status: int | None
    seconds: float


def run(arguments: list[str], log: Path, due: Callable[[float], bool] | None = None) -> Ended:
    """Run one command; SIGKILL it as soon as `due`, asked with the seconds since its start, says so."""
    child = os.fork()
    if child == 0:
        _be(arguments, log)
    started = time.perf_counter()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        seconds = time.perf_counter() - started
        if ended:
            return Ended(False, os.waitstatus_to_exitcode(status), seconds)
        if due is not None and due(seconds):
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                return Ended(True, None, time.perf_counter() - started)
            return Ended(False, os.waitstatus_to_exitcode(status), seconds)  # it was over just before
        time.sleep(_POLL_SECONDS)


def _be(arguments: list[str], log: Path) -> None:
    """Become the command; never returns."""
    status = 70
    try:
        with log.open("ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        torch.set_num_threads(1)
        sys.argv = ["cocomix", *arguments]
        cocomix.cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
