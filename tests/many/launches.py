"""Several processes of the command line, as torchrun or accelerate starts them, or forked of one that is warm."""

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import spawn

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "{processes}")
ACCELERATE = (
    "accelerate.commands.launch",
    *("--use_fsdp", "--fsdp_version", "2", "--fsdp_reshard_after_forward", "true"),
    *("--num_processes", "{processes}", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0"),
)


def launched(
    arguments: Sequence[object],
    processes: int,
    *,
    launcher: Sequence[str] = TORCHRUN,
    module: str = "cocomix",
    status: int = 0,
    timeout: float = 500,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` in so many processes; the launcher's exit status must be as expected."""
    launch = [part.format(processes=processes) for part in launcher]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == status, done.stderr[-4000:]
    return done


def spawned(function: Callable[..., None], processes: int, *arguments: object) -> None:
    """Call a module's function in so many new processes, with torchrun's environment; all must end well."""
    spawn(_spawned, (function, processes, _free_port(), arguments), nprocs=processes)


def _spawned(rank: int, function: Callable[..., None], processes: int, port: int, arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(_environment(rank, processes, port))
    function(*arguments)


def forked(function: Callable[[], None], processes: int) -> list[int]:
    """Call a function in so many forks of this process, with torchrun's environment; their exit statuses.

    Spares each the seconds that imports take. This process must not have used accelerate's state or threads.
    """
    port, children = _free_port(), []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            _be_process(function, rank, processes, port)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _be_process(function: Callable[[], None], rank: int, processes: int, port: int) -> None:
    status = 0
    try:
        os.environ.update(_environment(rank, processes, port))
        function()
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank}
    return {name: str(value) for name, value in {**sizes, "MASTER_PORT": port}.items()} | {"MASTER_ADDR": "127.0.0.1"}


def rows(run: Path) -> list[dict[str, Any]]:
    """A run's metrics, line by line."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def curve(run: Path, name: str) -> list[float]:
    """A loss at every step it was logged."""
    return [row[name] for row in rows(run) if name in row]


def difference(run: Path, other: Path) -> float:
    """The largest difference of any loss at any step."""
    names = [name for name in ("ntp_loss", "concept_loss", "hidden_loss", "kd_loss") if curve(other, name)]
    return max(
        abs(mine - theirs) for name in names for mine, theirs in zip(curve(run, name), curve(other, name), strict=True)
    )
