"""How many threads PyTorch computes with on a CPU, chosen by measurement.

PyTorch starts a thread a core and lets every operation wait for all of them. Where other programs keep the cores busy,
each operation waits until the last of its threads gets a core: on two busy cores a training step took 2.1 s with two
threads and 0.06 s with one.
"""

import logging
import os
import time

import torch

from cocomix.runtime.device import default_device

__all__ = ["choose_threads", "products_per_second", "usable_cores"]

WORTH_IT = 1.2
"""How many times as fast fewer threads must be to be preferred: two measurements differ by less (our choice)."""

logger = logging.getLogger(__name__)


def usable_cores() -> int:
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def products_per_second(threads: int, *, seconds: float = 0.2) -> float:
    """Matrix products of the size of a small layer, measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right = torch.rand(512, 512), torch.rand(512, 512)
        count, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds:
            left @ right
            count += 1
        return count / passed
    finally:
        torch.set_num_threads(before)


def choose_threads() -> None:
    """Have PyTorch use the number of threads that is fastest now, and say so where these are fewer than it would use.

    Halves of its own number are tried, 0.2 s each. Nothing is changed where OMP_NUM_THREADS says how many to use, with
    an accelerator, or when a launcher started several processes. Sums of another number of threads differ in their last
    bits.
    """
    threads = torch.get_num_threads()
    told = {"OMP_NUM_THREADS", "WORLD_SIZE"} & os.environ.keys()  # by a person, or a launcher of several processes
    if threads == 1 or told or default_device().type != "cpu":
        return
    counts = [threads]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    speeds = {count: products_per_second(count) for count in counts}
    best = max(counts, key=lambda count: speeds[count])
    if speeds[best] > WORTH_IT * speeds[threads]:
        torch.set_num_threads(best)
        logger.info(
            f"the cores are busy: PyTorch computes {speeds[best] / speeds[threads]:.1f} times as fast with {best} of "
            f"{threads} threads now, and uses them; set OMP_NUM_THREADS={threads} to use all"
        )
