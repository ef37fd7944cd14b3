"""`cocomix doctor`: what this machine offers, and what to do where something is missing."""

import os
import platform
import shutil
import sqlite3
import threading
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

from cocomix.runtime.allocator import keep_freed_memory
from cocomix.runtime.device import (
    WORTH_IT,
    available_memory,
    cpu_flags,
    default_device,
    products_per_second,
    usable_cores,
)

_NEEDED = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "pyarrow")
_OPTIONAL = {
    "datasets": "hub",
    "sae-lens": "sae",
    "matplotlib": "report",
    "scipy": "report",
    "gguf": "gguf",
    "gradio": "explorer",
    "lm-eval": "eval",
}
_GIB = 2**30
_LITTLE_MEMORY, _LITTLE_DISK, _NO_DISK = 4 * _GIB, 10 * _GIB, _GIB // 10  # our choice: the 69M recipes want more
_HUB_SECONDS = 2.0


class Line(NamedTuple):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warn", "fail"]  # `warn` is what some verbs miss; with `fail` nothing works well
    value: str  # what was found
    advice: str = ""  # what to do; empty where all is well


def _warned(name: str, value: str, if_so: bool, advice: str) -> Line:
    return Line(name, "warn", value, advice) if if_so else Line(name, "ok", value)


def examine(folder: Path | None = None) -> list[Line]:
    """Look at everything, and at the folder where outputs would go; two seconds at most beyond the imports."""
    packages = [_needed(name) for name in _NEEDED] + [_optional(name, extra) for name, extra in _OPTIONAL.items()]
    lines = [_python(), *packages, _device(), _memory(), _bfloat16(), _attention(), _allocator(), _load(), _threads()]
    return [*lines, _disk(folder or Path.cwd()), _full_text_search(), _hub()]


def _python() -> Line:
    found, wanted = platform.python_version(), metadata("cocomix")["Requires-Python"]
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Line("python", "ok", found)
    return Line("python", "fail", found, f"cocomix needs Python {wanted}")


def _load() -> Line:
    load, cores = psutil.getloadavg()[0], usable_cores()  # the mean of the last minute
    value = f"{load:.1f} programs want to run on {cores} cores"
    return _warned("load", value, load > 1.5 * cores, "other programs keep the cores busy: all of it takes longer")


def _needed(name: str) -> Line:
    asked = map(Requirement, requires("cocomix") or ())
    # Anything will do, where the installed metadata of cocomix is older than its source.
    wanted = next((one for one in asked if one.name == name), Requirement(name)).specifier
    try:
        found = version(name)
        if wanted.contains(found, prereleases=True):
            return Line(name, "ok", found)
    except PackageNotFoundError:
        found = "not installed"
    return Line(name, "fail", found, f"run: pip install '{name}{wanted}'")


def _optional(name: str, extra: str) -> Line:
    line = _needed(name)
    return line if line.state == "ok" else Line(name, "warn", line.value, f"run: pip install 'cocomix[{extra}]'")


def _device() -> Line:
    device = default_device()
    if device.type == "cpu":
        return Line("device", "ok", f"cpu, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}")
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    return Line("device", "ok", f"{torch.accelerator.device_count()} × {name}")


def _memory() -> Line:
    found = available_memory(default_device())
    if found is None:
        return Line("memory", "warn", "unknown on this system", "see that a few GB are free")
    remedy = "lower --batch-tokens and training.per_device_train_batch_size"
    return _warned("memory", f"{found / _GIB:,.1f} GiB free", found < _LITTLE_MEMORY, remedy)


def _bfloat16() -> Line:
    if default_device().type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Line("bfloat16", "warn", "not supported by the GPU", "train with training.fp16=true or in float32")
    if default_device().type != "cpu":
        return Line("bfloat16", "ok", "supported by the accelerator")
    flags = sorted(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    value = f"the CPU has {', '.join(flags)}" if flags else "emulated by the CPU, slow"
    return _warned("bfloat16", value, not flags, "leave training.bf16 out; the CPU recipes do")


def _attention() -> Line:
    kernels = ["eager", "sdpa"]
    kernels += ["flash_attention_2"] if is_flash_attn_2_available() else []
    kernels += ["flex_attention"] if is_torch_flex_attn_available() else []
    return Line("attention", "ok", ", ".join(kernels))


def _allocator() -> Line:
    kept = "glibc keeps freed memory, set by the cocomix command"
    return Line("allocator", "ok", kept if keep_freed_memory() else f"as {platform.system()} has it")


def _threads() -> Line:
    cores = usable_cores()
    threads = torch.get_num_threads()
    value = f"{threads} of {cores} cores"
    if threads > cores:
        return Line("threads", "warn", value, f"set OMP_NUM_THREADS={cores}")
    times = products_per_second(1) / products_per_second(threads) if threads > 1 else 0.0
    busy = times > WORTH_IT  # on a free machine it is below 1
    value += f", busy: one thread is {times:,.1f} times as fast now" if busy else ""
    return _warned("threads", value, busy, "set OMP_NUM_THREADS=1 while other programs run")


def _disk(folder: Path) -> Line:
    free = shutil.disk_usage(folder).free
    value = f"{free / _GIB:,.1f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Line("disk", "warn", f"{folder} is read-only", "write elsewhere with --output")
    if free < _NO_DISK:
        return Line("disk", "fail", value, "make room, or work on another disk")
    return _warned("disk", value, free < _LITTLE_DISK, "a checkpoint takes 12 bytes per parameter, labels 16 per token")


def _full_text_search() -> Line:
    try:
        with sqlite3.connect(":memory:") as database:
            database.execute("CREATE VIRTUAL TABLE t USING fts5 (c)")
    except sqlite3.OperationalError:
        without = f"{sqlite3.sqlite_version} without FTS5"
        return Line("sqlite", "warn", without, "cocomix atlas needs a Python that has it")
    return Line("sqlite", "ok", f"{sqlite3.sqlite_version} with full-text search")


def _hub() -> Line:
    if constants.HF_HUB_OFFLINE:
        return Line("hub", "ok", "not asked: HF_HUB_OFFLINE is set")
    faults: list[str | None] = []
    # In a thread, because looking up a name has no time limit of its own.
    asking = threading.Thread(target=lambda: faults.append(_fault_of_hub()), daemon=True)
    asking.start()
    asking.join(_HUB_SECONDS)
    fault = faults[0] if faults else f"within {_HUB_SECONDS:.0f} s"
    value = f"{constants.ENDPOINT} answers" if fault is None else f"{constants.ENDPOINT} does not answer ({fault})"
    advice = "use folders instead of hub names, and set HF_HUB_OFFLINE=1 to save waiting"
    return _warned("hub", value, fault is not None, advice)


def _fault_of_hub() -> str | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=_HUB_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # it answers
    except OSError as error:
        return str(error)
