"""Label on a Ray cluster of two nodes here, kill a worker in the middle of a shard, and compare with one process.

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
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer

from cocomix.artifacts.hashing import file_sha256
from cocomix.artifacts.output import write_json
from cocomix.concepts import ConceptTeacher, TeacherSource
from cocomix.data import Tokens
from cocomix.labelling import RaySettings
from cocomix.labelling.labels import read_label_manifest
from cocomix.labelling.writing import write_labels
from tests.workshop import BLOCK, Workshop, prepare_toy, write_corpus

__all__ = ["JournalledSource", "Killer", "begun_by", "journalled", "two_nodes"]

_PATIENCE_SECONDS = 300

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


def journalled(teacher: ConceptTeacher, journal: str) -> ConceptTeacher:
    """The teacher; it notes the process that labels a batch, and waits half a second, and for a second process."""
    original = teacher.label

    def label(*arguments: Any, **options: Any) -> Any:
        with open(journal, "a", encoding="utf-8") as stream:
            stream.write(f"{os.getpid()}\n")
        until = time.monotonic() + _PATIENCE_SECONDS
        time.sleep(0.5)
        while len(set(begun_by(Path(journal)))) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        return original(*arguments, **options)

    teacher.label = label  # type: ignore[method-assign]
    return teacher


def begun_by(journal: Path) -> list[int]:
    """The processes that labelled batches, in order."""
    return [int(line) for line in journal.read_text(encoding="utf-8").split()] if journal.exists() else []


@dataclass(frozen=True)
class JournalledSource(TeacherSource):
    """Loads a teacher that keeps a journal."""

    journal: str = ""

    def load(self, device: torch.device | str | None = None) -> ConceptTeacher:
        return journalled(super().load(device), self.journal)


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
        until = time.monotonic() + _PATIENCE_SECONDS
        while len(set(begun := begun_by(self.journal))) < 2:
            if time.monotonic() > until:
                return
            time.sleep(0.02)
        self.nodes = {pid: psutil.Process(pid).ppid() for pid in set(begun)}
        self.killed = begun[-1]
        os.kill(self.killed, signal.SIGKILL)


def main(
    output: Annotated[Path, typer.Option(help="Folder of the summary.")] = Path("results/ray"),
    documents: Annotated[int, typer.Option(help="Toy documents that are labelled.")] = 240,
) -> None:
    """Kill and compare."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="cocomix-ray-") as place:
        summary = _run(Path(place), documents)
    command = f"python -m tests.ray_kill --documents {documents}"
    names = ("cocomix", "ray", "torch", "transformers")
    versions = {**{name: version(name) for name in names}, "python": sys.version.split()[0]}
    about = {"command": command, "date": time.strftime("%Y-%m-%d"), "versions": versions}
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "kill.json", about | summary)
    typer.echo((output / "kill.json").read_text(encoding="utf-8"))
    if summary["differing"] or not summary["retried"]:
        raise SystemExit(1)


def _run(place: Path, documents: int) -> dict[str, Any]:
    workshop = Workshop(place / "workshop")
    corpus = write_corpus(place / "corpus", documents=documents, seed=1)
    tokenizer = str(workshop.data / "tokenizer")
    data = prepare_toy(corpus, place / "data", tokenizer=tokenizer, vocab_size=None, tokens_per_file=48 * BLOCK)
    journal = place / "journal"
    source = JournalledSource(str(workshop.teacher), 1, str(workshop.dictionary), journal=str(journal))
    one = _label(data, TeacherSource(source.model, 1, source.dictionary), place / "one", None)
    killer = Killer(journal)
    killer.start()
    with two_nodes() as address:
        ray = _label(data, source, place / "ray", RaySettings(address, gpus=0))
    batches, begun = len(one["files"]), begun_by(journal)
    differing = [name for name in one["files"] if ray["files"].get(name) != one["files"][name]]
    return {
        "nodes": len(set(killer.nodes.values())),
        "shards": len(one["files"]),
        "tokens": sum(len(data.split(split)) for split in data.manifest.splits) * BLOCK,
        "processes_that_labelled": len(set(begun)),
        "killed": killer.killed is not None,
        "shards_begun": len(begun),
        "retried": len(begun) > batches,
        "files": ray["files"],
        "fingerprint": ray["fingerprint"],
        "fingerprint_of_one_process": one["fingerprint"],
        "differing": differing,
    }


def _label(data: Tokens, source: TeacherSource, output: Path, ray: RaySettings | None) -> dict[str, Any]:
    write_labels(
        source.load(),
        {name: data.shards(name, 48) for name in data.manifest.splits},
        output,
        data_fingerprint=data.manifest.fingerprint,
        tokenizer_fingerprint=data.manifest.tokenizer_fingerprint,
        block_size=BLOCK,
        batch_tokens=1 << 20,
        workers=2 if ray is not None else 1,
        source=source,
        ray=ray,
    )
    files = {str(path.relative_to(output)): file_sha256(path) for path in sorted(output.rglob("*.arrow"))}
    return {"files": files, "fingerprint": read_label_manifest(output).fingerprint}


if __name__ == "__main__":
    typer.run(main)
