"""Where to compute: the only module that asks for devices."""

import re
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["available_memory", "chunk_bytes", "default_device", "task_device", "worker_device"]


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
    with suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        if (line := re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)) is not None:
            found.append(int(line[1]) * 1024)
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups of version 2 and 1
        with suppress(OSError, ValueError):
            found.append(int((Path("/sys/fs/cgroup") / limit).read_text(encoding="ascii")))  # or "max"
    return min(found, default=None)


def chunk_bytes(device: torch.device) -> int:
    """How many bytes one chunk of a chunked computation may take.

    Our choice: 256 MiB, and 1/128 of a GPU's memory where that is more (640 MiB of 80 GiB): every chunk adds to a
    gradient as large as the weight, so that few large chunks are faster than many small ones.
    """
    least = 256 * 2**20
    if device.type == "cuda":
        return max(least, torch.cuda.get_device_properties(device).total_memory // 128)
    return least
