"""What a benchmark ran on: written beside every figure."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

__all__ = ["cpu_has_bf16", "describe_machine", "peak_flops"]

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

# Dense bfloat16 FLOP/s of NVIDIA's data sheets; the first name found in the device's name counts.
_PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
)


def peak_flops(device: str) -> float | None:
    """Dense bfloat16 FLOP/s of the accelerator by its data sheet; None for a CPU and for one that is not listed."""
    if device == "cpu":
        return None
    name = torch.cuda.get_device_name()
    return next((peak for known, peak in _PEAKS if known in name), None)


def describe_machine(device: str) -> dict[str, Any]:
    """Hardware, load and versions, as JSON values."""
    cpuinfo = _cpuinfo()
    flags = cpuinfo.get("flags", "").split()
    return {
        "processor": cpuinfo.get("model name", platform.machine()),
        "instructions": [flag for flag in _FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": None if device == "cpu" else torch.cuda.get_device_name(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "cocomix")},
    }


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware; False where that cannot be found out."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpuinfo().get("flags", "").split())


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is no such file."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
