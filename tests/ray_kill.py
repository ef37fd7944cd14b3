"""Label on a Ray cluster of two nodes here, kill a worker in the middle of a shard, and compare with other executors.

    python -m tests.ray_kill

Exit status 1 if a byte differs, or if no shard had to be begun twice.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # read when torch is imported

import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer

from cocomix.artifacts import file_sha256, write_json
from cocomix.data import Tokens
from cocomix.labelling import Executor, Inline, Job, Labels, Processes, RayExecutor, SlurmArray, label_data
from tests.concepts.conftest import VOCAB
from tests.journalled import PATIENCE_SECONDS, JournalledConfig, begun_by
from tests.labelling.tiny import BLOCK, write_tokens

__all__ = ["Killer", "two_nodes"]

_SHARD = 4 * BLOCK  # tokens: one batch

_SYSTEM = {
    "worker_register_timeout_seconds": 600,
    "agent_register_timeout_ms": 600_000,
    "health_check_timeout_ms": 600_000,
    "health_check_period_ms": 60_000,
}
"""A machine that runs other things must not look like a cluster that is dead."""


@contextmanager
def two_nodes() -> Iterator[str]:
    """A cluster of two nodes of one CPU each; its address."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        node = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False}
        cluster.add_node(_system_config=_SYSTEM, **node)
        cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()


class Killer(threading.Thread):
    """Ends by SIGKILL the second process that notes a batch, in the middle of it.

    Attributes:
        journal: where they note it.
        nodes: the Ray node (its raylet) of each process until then.
        killed: the process.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(daemon=True)
        self.journal = journal
        self.nodes: dict[int, int] = {}
        self.killed: int | None = None

    def run(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while len(set(begun := begun_by(self.journal))) < 2:
            if time.monotonic() > until:
                return
            time.sleep(0.02)
        self.nodes = {pid: psutil.Process(pid).ppid() for pid in set(begun)}
        self.killed = begun[-1]
        os.kill(self.killed, signal.SIGKILL)


def main(
    output: Annotated[Path, typer.Option(help="Folder of the summary.")] = Path("results/ray"),
    blocks: Annotated[int, typer.Option(help="Blocks of 9 tokens that are labelled.")] = 100,
) -> None:
    """Kill and compare."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="cocomix-ray-") as place:
        summary = _run(Path(place), blocks)
    command = f"python -m tests.ray_kill --blocks {blocks}"
    names = ("cocomix", "ray", "torch", "transformers")
    versions = {**{name: version(name) for name in names}, "python": sys.version.split()[0]}
    about = {"command": command, "date": time.strftime("%Y-%m-%d"), "versions": versions}
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "kill.json", about | summary)
    typer.echo((output / "kill.json").read_text(encoding="utf-8"))
    if any(summary["differing"].values()) or not summary["retried"]:
        raise SystemExit(1)


def _run(place: Path, blocks: int) -> dict[str, Any]:
    draw = np.random.default_rng(0).integers(1, VOCAB, (blocks, BLOCK))
    cuts = (blocks // 2, 9 * blocks // 10)
    tokens = write_tokens(
        place / "data", {"train": [draw[: cuts[0]], draw[cuts[0] : cuts[1]]], "validation": [draw[cuts[1] :]]}
    )
    journal, plain = place / "journal", JournalledConfig(journal=str(place / "other"), slow=False)
    made = {"one process": _label(tokens, plain, place / "one", Inline())}
    made["two processes"] = _label(tokens, plain, place / "two", Processes(2))
    for index in (2, 0, 1):
        found = _label(tokens, plain, place / "parts", SlurmArray(index, 3))
    made["three parts of a Slurm array"] = found
    killer = Killer(journal)
    killer.start()
    with two_nodes() as address:
        slow = plain.model_copy(update={"journal": str(journal), "slow": True})
        made["Ray, a worker killed"] = _label(tokens, slow, place / "ray", RayExecutor(address, gpus=0))
    begun = begun_by(journal)
    shards = sum(-(-part // 4) for part in (cuts[0], cuts[1] - cuts[0], blocks - cuts[1]))
    one = made["one process"]
    return {
        "nodes": len(set(killer.nodes.values())),
        "shards": shards,
        "tokens": blocks * BLOCK,
        "processes_that_labelled": len(set(begun)),
        "killed": killer.killed is not None,
        "shards_begun": len(begun),
        "retried": len(begun) > shards,
        "files": one["files"],
        "fingerprints": {name: values["fingerprint"] for name, values in made.items()},
        "differing": {
            name: [file for file in one["files"] if values["files"].get(file) != one["files"][file]]
            for name, values in made.items()
        },
    }


def _label(tokens: Tokens, config: JournalledConfig, output: Path, executor: Executor) -> dict[str, Any]:
    job = Job(batch_tokens=_SHARD, unit_tokens=_SHARD, executor=executor)
    if label_data(tokens.path, config, output, job=job) is None:
        return {}
    files = {path.name: file_sha256(path) for path in sorted(output.glob("*.npy"))}
    return {"files": files, "fingerprint": Labels.open(output).fingerprint}


if __name__ == "__main__":
    typer.run(main)
