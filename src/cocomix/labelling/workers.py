"""Labelling in several processes of one machine.

The calling process hands out shards and labels none itself; its own teacher stays in memory, idle. Each worker is a
fresh process that loads the teacher and the dictionary, takes one shard after the other and writes it as a single
process would. Workers ignore Ctrl-C, which the calling process answers by ending them; a worker whose caller is gone
ends at its next message.
"""

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
import transformers

from cocomix.concepts.teacher import TeacherSource
from cocomix.concepts.tokens import TokenShardLike
from cocomix.labelling.shards import Advance, ShardPlan, ShardWriter, label_shard
from cocomix.runtime.allocator import keep_freed_memory
from cocomix.runtime.device import worker_device
from cocomix.runtime.errors import CoCoMixError

__all__ = ["label_in_processes"]

_GO_ON = "finished shards are kept, so run the same command again to go on"


def label_in_processes(
    source: TeacherSource,
    fingerprints: tuple[str, str],
    shards: Sequence[TokenShardLike],
    plan: ShardPlan,
    workers: int,
    advance: Advance,
) -> float:
    """Label and write shards in several processes.

    Args:
        source: where each worker loads the teacher and the dictionary from.
        fingerprints: of the model and the dictionary that `source` must give.
        shards: still to be labelled; handed out in this order.
        plan: settings, sizes and folder.
        workers: processes; worker i uses accelerator i, or its share of this process's threads on the CPU.
        advance: called here with the number of tokens done, whoever did them.

    Returns:
        Seconds from the moment the first worker was ready.

    Raises:
        CoCoMixError: a worker failed or was killed; the others are ended.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // workers)
    started: dict[Connection, SpawnProcess] = {}
    try:
        with _ctrl_c_ignored():
            for index in range(workers):
                here, there = context.Pipe()
                arguments = (index, threads, source, fingerprints, plan, there)
                process = context.Process(target=_work, args=arguments, name=f"label-{index}", daemon=True)
                process.start()
                there.close()
                started[here] = process
        return _hand_out(started, shards, advance)
    finally:
        for process in started.values():
            process.terminate()
        for connection, process in started.items():
            process.join()
            connection.close()


def _hand_out(started: dict[Connection, SpawnProcess], shards: Sequence[TokenShardLike], advance: Advance) -> float:
    """Answer the workers until all have left; see `label_in_processes`."""
    left = iter(shards)
    active = dict(started)
    began: float | None = None
    while active:
        for connection in wait(list(active)):
            assert isinstance(connection, Connection)
            try:
                kind, content = connection.recv()
            except (EOFError, ConnectionResetError):
                _check_end(active.pop(connection))
                continue
            if kind == "failed":
                raise CoCoMixError(content)
            if kind == "tokens":
                advance(content)
            else:
                began = time.perf_counter() if began is None else began
                _send(connection, next(left, None))
    return 0.0 if began is None else time.perf_counter() - began


def _send(connection: Connection, shard: TokenShardLike | None) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # a worker that is gone; its end is read next
        connection.send(shard)


def _check_end(process: SpawnProcess) -> None:
    """Refuse a worker that did not leave by itself."""
    process.join()
    if process.exitcode == 0:
        return
    status = process.exitcode or 0
    how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
    raise CoCoMixError(
        f"the labelling worker {process.name} {how}; {_GO_ON}, with fewer --workers if the machine ran out of memory."
    )


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Processes started in the block inherit that Ctrl-C is ignored, even while they are still importing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(
    index: int,
    threads: int,
    source: TeacherSource,
    fingerprints: tuple[str, str],
    plan: ShardPlan,
    connection: Connection,
) -> None:
    """A worker process: label shards until there are none left."""

    def tell(kind: str, content: Any) -> None:
        connection.send((kind, content))

    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    try:
        teacher = source.load(worker_device(index))
        if (teacher.fingerprint(), teacher.dictionary.fingerprint()) != fingerprints:
            raise CoCoMixError(
                f"{source.model} or {source.dictionary} is not what labelling began with; run the same command again."
            )
        with ShardWriter(plan) as writer:
            tell("ready", None)
            while (shard := connection.recv()) is not None:
                writer.write(shard.name, label_shard(teacher, shard, plan, lambda tokens: tell("tokens", tokens)))
                tell("ready", None)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        return  # the calling process is gone
    except CoCoMixError as error:
        tell("failed", str(error))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        tell("failed", f"a labelling worker failed ({reason}); {_GO_ON}.")
