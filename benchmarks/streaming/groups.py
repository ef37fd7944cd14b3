"""Runs of several processes that read together, as ranks do, and how much disk they took."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.streaming.candidates import FORMATS, Settings
from benchmarks.streaming.corpus import Size

__all__ = ["Group", "Run", "read"]


@dataclass(frozen=True)
class Group:
    """What several processes read.

    Attributes:
        candidate: name of the library.
        place: folder or URL that holds every format.
        size: of the corpus.
        tokenizer: for text.
        world: processes.
        workers: of each process.
        global_batch: blocks per step of all processes.
        steps: of the run.
        save_at: steps after which every process saves its state.
        states: files to resume from.
        limit: bytes that the cache may hold.
        shuffle_block: mosaicml-streaming's.
        fresh_client: see `Settings`.
        names: files, for places that cannot be listed.
        endpoint: of S3.
        timeout: seconds.
    """

    candidate: str
    place: str
    size: Size
    tokenizer: Path
    world: int = 1
    workers: int = 2
    global_batch: int = 8
    steps: int = 128
    save_at: tuple[int, ...] = ()
    states: tuple[str, ...] = ()
    limit: int | None = None
    shuffle_block: int | None = None
    fresh_client: bool = False
    names: tuple[str, ...] = ()
    endpoint: str = ""
    timeout: float = 300


@dataclass
class Run:
    """What came out.

    Attributes:
        steps: blocks of each step of all processes, process by process.
        outputs: of each process.
        errors: of processes that failed.
        peak: bytes of the cache folder, at most.
        timed_out: whether it was ended.
        states: files by step.
    """

    steps: list[list[int]]
    outputs: list[dict[str, Any]]
    errors: list[dict[str, str]]
    peak: int
    timed_out: bool
    states: dict[int, tuple[str, ...]] = field(default_factory=dict)


def read(group: Group, folder: Path) -> Run:
    """Let the processes read, with an empty cache."""
    work = Path(tempfile.mkdtemp(dir=folder))
    cache = work / "cache"
    settings = Settings(
        place=f"{group.place}/{FORMATS[group.candidate]}",
        cache=str(cache),
        rank=0,
        world=group.world,
        batch=group.global_batch // group.world,
        workers=group.workers,
        block=group.size.block,
        epoch_steps=group.size.blocks // group.global_batch,
        limit=group.limit,
        shuffle_block=group.shuffle_block,
        fresh_client=group.fresh_client,
        names=group.names,
    )
    port = _free_port()
    if group.candidate == "mosaicml-streaming":
        _clean_shared_memory()
    processes = []
    for rank in range(group.world):
        told = {
            "candidate": group.candidate,
            "settings": asdict(replace(settings, rank=rank)),
            "steps": group.steps,
            "save_at": group.save_at,
            "states": group.states,
        }
        (work / f"{rank}.json").write_text(json.dumps(told))
        env = {
            **os.environ,
            "RANK": str(rank),
            "GLOBAL_RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(group.world),
            "LOCAL_WORLD_SIZE": str(group.world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "BENCHMARK_TOKENIZER": str(group.tokenizer),
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(work / "hf"),
            "HF_DATASETS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONWARNINGS": "ignore",
            "TMPDIR": str(work),
        }
        if group.endpoint:
            env["AWS_ENDPOINT_URL"] = group.endpoint
        command = [
            sys.executable,
            "-m",
            "benchmarks.streaming.read",
            str(work / f"{rank}.json"),
            str(work / f"{rank}.out"),
        ]
        with (work / f"{rank}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
    peak, end = 0, time.monotonic() + group.timeout
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        peak = max(peak, _bytes(cache))
        time.sleep(0.03)
    timed_out = any(process.poll() is None for process in processes)
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return _gathered(group, work, max(peak, _bytes(cache)), timed_out)


def _gathered(group: Group, work: Path, peak: int, timed_out: bool) -> Run:
    outputs = []
    for rank in range(group.world):
        path = work / f"{rank}.out"
        if path.exists():
            outputs.append(json.loads(path.read_text()))
        else:
            says = (work / f"{rank}.log").read_text(errors="replace")[-600:]
            error = {"type": "still running" if timed_out else "no output", "says": says}
            outputs.append({"batches": [], "error": error, "seconds": {}, "cpu": {}})
    steps = [
        list(chain.from_iterable(parts)) for parts in zip(*(output["batches"] for output in outputs), strict=False)
    ]
    states = {
        step: tuple(str(work / f"{rank}-at-{step}.state") for rank in range(group.world)) for step in group.save_at
    }
    return Run(steps, outputs, [out["error"] for out in outputs if out["error"]], peak, timed_out, states)


def _clean_shared_memory() -> None:
    """Delete what a mosaicml-streaming that was ended left in shared memory: the next would wait for it."""
    for path in Path("/dev/shm").glob("[0-9][0-9][0-9][0-9][0-9][0-9]_*"):
        path.unlink(missing_ok=True)


def _bytes(folder: Path) -> int:
    """What a folder's files take."""
    found = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # deleted meanwhile
            found += path.stat().st_size if path.is_file() else 0
    return found


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
