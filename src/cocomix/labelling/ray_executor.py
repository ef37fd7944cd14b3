"""Computes `map_shards` on a Ray cluster: a pool of actors, each of which loads what the function needs once.

The calling process sends tokens to the actors and stores what they return, so that nodes share no folder with it. They
need cocomix in the same version, and models under the names that the caller uses: hub names, or paths that every node
has.
"""

import logging
import math
import os
import socket
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cocomix.labelling.executors import Answer, Lost, WorkerPool, attempt, begin
from cocomix.labelling.map_shards import Executor, Outcome, ShardFunction, Task, Work
from cocomix.runtime.device import task_device
from cocomix.runtime.errors import CoCoMixError, require_extra

logger = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 25.0  # for a cluster at an address; Ray itself takes minutes to give up
_SECONDS_BETWEEN_LOOKS = 10.0  # at what the cluster offers


@dataclass(frozen=True)
class RayExecutor(Executor):
    """Computes on a Ray cluster."""

    address: str | None = None
    """`auto`, `HOST:PORT` or `ray://HOST:PORT`; by default `RAY_ADDRESS`, or a cluster started on this machine for the
    time of the call."""
    concurrency: tuple[int, int | None] = (1, None)
    """(fewest, most) actors. By default as many as the cluster has room for, and more when it grows; the fewest are
    asked for also where there is no room yet, so that an autoscaling cluster grows to hold them."""
    gpus: float | None = None
    """GPUs of an actor, also a part of one. By default 1 on nodes that have any, and actors without a GPU only as long
    as no node of the cluster has one."""
    cpus: int = 1
    """CPU cores of an actor, and threads it computes with."""

    def __post_init__(self) -> None:
        fewest, most = self.concurrency
        if (self.gpus is not None and self.gpus < 0) or self.cpus < 1:
            raise CoCoMixError(
                f"a Ray worker cannot take {self.gpus} GPUs and {self.cpus} CPU cores; GPUs start at 0, cores at 1."
            )
        if fewest < 1 or (most is not None and most < fewest):
            raise CoCoMixError(f"there cannot be {fewest} to {most} Ray workers; the fewest are at least 1.")

    def run(self, function: ShardFunction, work: Work) -> Generator[Outcome, None, None]:
        """See `Executor`. A shard whose actor or node dies counts as failed once, and another actor takes its place."""
        if work.left():
            ray = _import_ray()
            with _connected(ray, self.address):
                yield from _ActorPool(ray, self, function).run(work)


class _Actor:
    """What runs on the cluster. It raises nothing, so that an exception of Ray means that the actor is lost."""

    def __init__(self, function: ShardFunction, threads: int, accelerated: bool) -> None:
        self.function, self.threads, self.accelerated = function, threads, accelerated

    def begin(self) -> str | None:
        return begin(self.function, task_device(self.accelerated), self.threads)

    def compute(self, task: Task) -> Outcome:
        return attempt(self.function, task)


class _ActorPool(WorkerPool[Any]):
    """Actors of a Ray cluster."""

    most_losses_at_start = 3

    def __init__(self, ray: Any, settings: RayExecutor, function: ShardFunction) -> None:
        super().__init__()
        self.ray, self.settings = ray, settings
        self.function = ray.put(function)
        self.awaited: dict[Any, Any] = {}  # reference of an answer → actor
        self.looked = -_SECONDS_BETWEEN_LOOKS
        self.told = False

    def resize(self, useful: int) -> None:
        if time.monotonic() - self.looked < _SECONDS_BETWEEN_LOOKS and self.awaited:
            return
        self.looked = time.monotonic()
        gpus, room = self.room()
        fewest, most = self.settings.concurrency
        there = len(self.idle) + len(self.busy) + len(self.loading)
        for _ in range(min(useful, max(room, fewest), useful if most is None else most) - there):
            options = {"num_cpus": self.settings.cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
            actor = self.ray.remote(**options)(_Actor).remote(self.function, self.settings.cpus, gpus > 0)
            self.awaited[actor.begin.remote()] = actor
            self.loading[actor] = None

    def room(self) -> tuple[float, int]:
        """GPUs of an actor, and how many such actors the nodes of the cluster hold."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        gpus, cpus = self.settings.gpus, self.settings.cpus
        if gpus is None:
            gpus = 1.0 if any(node.get("GPU", 0.0) >= 1 for node in nodes) else 0.0
        room = sum(
            int(min(node.get("CPU", 0.0) // cpus, node.get("GPU", 0.0) // gpus if gpus else math.inf)) for node in nodes
        )
        if not room and not self.told:
            self.told = True
            logger.warning(
                f"no node of the Ray cluster has {cpus} CPU cores and {gpus:g} GPUs for a worker; waiting for the "
                "cluster to grow (stop with Ctrl-C if it cannot)"
            )
        return gpus, room

    def send(self, worker: Any, task: Task) -> None:
        self.awaited[worker.compute.remote(task)] = worker

    def answers(self) -> Iterator[tuple[Any, Answer]]:
        for reference in self.ray.wait(list(self.awaited), timeout=_SECONDS_BETWEEN_LOOKS)[0]:
            worker = self.awaited.pop(reference)
            try:
                answer = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                self.ray.kill(worker)
                answer = Lost(f"its Ray worker was lost ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
            yield worker, answer

    def end(self) -> None:
        for worker in (*self.idle, *self.busy, *self.loading):
            self.ray.kill(worker)


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection for the time of the block; one that the caller has already is used and kept."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _check_answers(address or os.environ.get("RAY_ADDRESS", ""))
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


def _check_answers(address: str) -> None:
    """See that something listens at an address, where it names host and port; `ray.init` alone takes minutes to."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname is None or place.port is None:
        return
    until = time.monotonic() + _SECONDS_TO_ANSWER
    while True:
        try:
            left = max(0.1, until - time.monotonic())
            socket.create_connection((place.hostname, place.port), timeout=left).close()
            return
        except OSError:  # a head node that is just starting refuses at first
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


def _import_ray() -> Any:
    require_extra("ray", "ray", purpose="--engine ray")
    import ray

    return ray
