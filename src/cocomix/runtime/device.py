"""Where to compute, and with how many threads: the only module that asks for devices.

PyTorch starts a thread a core and lets every operation wait for all of them. Where other programs keep the cores busy,
each operation waits until the last of its threads gets a core: on two busy cores a training step took 2.1 s with two
threads and 0.06 s with one. So the number is chosen by measurement.
"""

import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

logger = logging.getLogger(__name__)

WORTH_IT = 1.2
"""How many times as fast fewer threads must be to be preferred: two measurements differ by less (our choice)."""


def default_device() -> torch.device:
    """The machine's accelerator if PyTorch finds one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def worker_device(index: int) -> torch.device:
    """The device of one of several processes on this machine: they take the accelerators in turn, or share the CPU."""
    device = default_device()
    if device.type == "cpu":
        return device
    return torch.device(device.type, index % torch.accelerator.device_count())


def task_device(accelerated: bool) -> torch.device:
    """The device of a process that a scheduler started: the accelerator it was given, or the CPU if none was."""
    return default_device() if accelerated else torch.device("cpu")


def available_memory(device: torch.device) -> int | None:
    """Bytes that a program can have on a device; for the CPU without swapping. None where it cannot be known.

    Of a container the limit counts, not what is left of it, because its usage holds caches that would give way.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    with suppress(OSError):  # rather than psutil, which an exported model would need
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        if (line := re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)) is not None:
            found.append(int(line[1]) * 1024)
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups of version 2 and 1
        with suppress(OSError, ValueError):
            found.append(int((Path("/sys/fs/cgroup") / limit).read_text(encoding="ascii")))  # or "max"
    return min(found, default=None)


def cpu_flags() -> set[str]:
    """What the CPU can do, by Linux's names; empty where that cannot be known."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if (found := re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)) is not None:
            return set(found[1].split())
    return set()


def fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 much faster than in float32: by GPU, or by a CPU's AMX units.

    AMX is not used where PyTorch is held to older instructions, as by `ATEN_CPU_CAPABILITY=avx2`.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    held = not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return device.type == "cpu" and not held and "amx_bf16" in cpu_flags()


def auto_dtype(device: torch.device) -> Literal["float32", "bfloat16"]:
    """What a teacher of `dtype: auto` runs in on a device: bfloat16 where that is fast. It is said."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if fast_bfloat16(device) else "float32"
    logger.info("dtype auto: the teacher runs in %s on this %s", dtype, device.type)
    return dtype


def chunk_bytes(device: torch.device) -> int:
    """How many bytes one chunk of a chunked computation may take.

    Our choice: 256 MiB, and 1/128 of a GPU's memory where that is more (640 MiB of 80 GiB): every chunk adds to a
    gradient as large as the weight, so that few large chunks are faster than many small ones.
    """
    least = 256 * 2**20
    if device.type == "cuda":
        return max(least, torch.cuda.get_device_properties(device).total_memory // 128)
    return least


def usable_cores() -> int:
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def products_per_second(threads: int) -> float:
    """Matrix products of the size of a small layer, measured for 0.2 s."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right = torch.rand(512, 512), torch.rand(512, 512)
        count, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < 0.2:
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
