"""Labelling in tasks of a Ray cluster, a task per shard.

The calling process reads tokens and writes labels; a task is sent the tokens and returns the labels as they are stored.
So nodes share no folder with it. They need cocomix in the same version, and the teacher and the dictionary under the
names that the caller uses: hub names, or paths that every node has. A node's process loads the teacher once and keeps
it for its later tasks. Ray starts the task of a worker that died again, on whichever node has room.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from cocomix.concepts.teacher import ConceptTeacher, TeacherSource
from cocomix.concepts.tokens import TokenShardLike
from cocomix.labelling.shards import Advance, EncodedShard, ShardPlan, encode_shard, label_shard, store_encoded
from cocomix.runtime.allocator import keep_freed_memory
from cocomix.runtime.console import Reporter
from cocomix.runtime.device import task_device
from cocomix.runtime.errors import CoCoMixError

__all__ = ["RaySettings", "label_on_ray"]

_GO_ON = "finished shards are kept, so run the same command again to go on"


@dataclass(frozen=True)
class RaySettings:
    """Which cluster, and what one task takes of it.

    Attributes:
        address: `auto`, `HOST:PORT` or `ray://HOST:PORT`; by default `RAY_ADDRESS`, or a cluster started on this
            machine for the time of the call.
        gpus: GPUs of a task, also a part of one; by default 1 where the cluster has any, else 0.
        cpus: CPU cores of a task, and threads it computes with.
        retries: how often a shard is tried again after the process or the node that was labelling it died.
    """

    address: str | None = None
    gpus: float | None = None
    cpus: int = 1
    retries: int = 3

    def __post_init__(self) -> None:
        if (self.gpus is not None and self.gpus < 0) or self.cpus < 1 or self.retries < 0:
            raise CoCoMixError(
                f"a Ray task cannot take {self.gpus} GPUs and {self.cpus} CPU cores with {self.retries} retries; "
                "GPUs and retries start at 0, cores at 1."
            )


def label_on_ray(
    source: TeacherSource,
    fingerprints: tuple[str, str],
    shards: Sequence[TokenShardLike],
    plan: ShardPlan,
    settings: RaySettings,
    workers: int,
    advance: Advance,
    reporter: Reporter,
) -> float:
    """Label and write shards by tasks of a Ray cluster.

    Args:
        source: where each node loads the teacher and the dictionary from.
        fingerprints: of the model and the dictionary that `source` must give.
        shards: still to be labelled; handed out in this order.
        plan: settings, sizes and folder.
        settings: which cluster, and what a task takes of it.
        workers: tasks at once; what an autoscaling cluster grows to hold.
        advance: called with the number of tokens of every shard that was written.
        reporter: told that no node is large enough for a task yet.

    Returns:
        Seconds it took, loading included.

    Raises:
        CoCoMixError: Ray is not installed; there is no cluster at the address; a task failed, or died more often
            than it may.
    """
    ray = _import_ray()
    with _connected(ray, settings.address):
        gpus = _gpus_of_a_task(ray, settings, reporter)
        task = ray.remote(num_cpus=settings.cpus, num_gpus=gpus, max_retries=settings.retries, max_calls=0)(_label)
        order = _Order(source, fingerprints, plan, settings.cpus, gpus > 0)
        order_reference = ray.put(order)
        began = time.perf_counter()
        left, running = iter(shards), dict[Any, TokenShardLike]()
        try:
            while True:
                for shard in islice(left, workers - len(running)):
                    running[task.remote(order_reference, shard.name, np.array(shard.read()))] = shard
                if not running:
                    return time.perf_counter() - began
                for finished in ray.wait(list(running))[0]:
                    shard = running.pop(finished)
                    store_encoded(plan, shard.name, _outcome(ray, finished, shard.name))
                    advance(shard.num_blocks * plan.block_size)
        finally:
            for unfinished in running:
                ray.cancel(unfinished, force=True)


@dataclass(frozen=True)
class _Order:
    """What all tasks are told."""

    source: TeacherSource
    fingerprints: tuple[str, str]
    plan: ShardPlan
    threads: int
    accelerated: bool


@dataclass(frozen=True)
class _SentTokens:
    """A token shard that came with the task."""

    name: str
    tokens: NDArray[Any] = field(repr=False)

    @property
    def num_blocks(self) -> int:
        return len(self.tokens)

    def read(self) -> NDArray[Any]:
        return self.tokens


def _label(order: _Order, name: str, tokens: NDArray[Any]) -> EncodedShard | str:
    """The task: the labels of a shard, or why there are none. It raises nothing, so that Ray retries dead ones only."""
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(order.threads)
    try:
        teacher, *fingerprints = _loaded(order.source, task_device(order.accelerated))
        if tuple(fingerprints) != order.fingerprints:
            raise CoCoMixError(
                f"{order.source.model} or {order.source.dictionary} is not on every node what it is here; bring the "
                "nodes to the same files."
            )
        return encode_shard(order.plan, label_shard(teacher, _SentTokens(name, tokens), order.plan, lambda _: None))
    except CoCoMixError as error:
        return str(error)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"labelling the shard {name} on a Ray node failed ({reason}); {_GO_ON}."


@lru_cache(maxsize=1)
def _loaded(source: TeacherSource, device: torch.device) -> tuple[ConceptTeacher, str, str]:
    """The teacher with its fingerprints; loaded once in a process."""
    teacher = source.load(device)
    return teacher, teacher.fingerprint(), teacher.dictionary.fingerprint()


def _outcome(ray: Any, finished: Any, name: str) -> EncodedShard:
    """What a task returned.

    Raises:
        CoCoMixError: it failed, or died more often than it may.
    """
    try:
        outcome = ray.get(finished)
    except ray.exceptions.RayError as error:
        raise CoCoMixError(
            f"the Ray task of the shard {name} was lost after as many retries as --retries allows "
            f"({type(error).__name__}); {_GO_ON}."
        ) from error
    if isinstance(outcome, str):
        raise CoCoMixError(outcome)
    assert isinstance(outcome, EncodedShard)
    return outcome


def _gpus_of_a_task(ray: Any, settings: RaySettings, reporter: Reporter) -> float:
    """GPUs a task takes; warns where no node of the cluster is large enough yet."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    gpus = (1.0 if most else 0.0) if settings.gpus is None else settings.gpus
    if not any(node.get("GPU", 0.0) >= gpus and node.get("CPU", 0.0) >= settings.cpus for node in nodes):
        reporter.warn(
            f"no node of the Ray cluster has {settings.cpus} CPU cores and {gpus:g} GPUs for a task; waiting for the "
            "cluster to grow (stop with Ctrl-C if it cannot)"
        )
    return gpus


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection for the time of the block; one that the caller has already is used and kept.

    Raises:
        CoCoMixError: no cluster answers, or it has another version of Ray or Python.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, gRPC's own, by the kind of address
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__
        raise CoCoMixError(
            f"cannot join a Ray cluster at {address or 'this machine'} ({reason}); check --address, and that the "
            "cluster runs the same versions of Ray and Python."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise CoCoMixError("--engine ray needs Ray; run: pip install 'cocomix[ray]'.") from error
    return ray
