"""`cocomix doctor` on this machine, and on machines where things are missing."""

import json
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.runtime import device
from cocomix.runtime import machine as doctor
from cocomix.runtime.machine import Line, examine
from tests.command_line import Cli


def line(name: str, folder: Path) -> Line:
    return {found.name: found for found in examine(folder)}[name]


def test_this_machine(cli: Cli) -> None:
    lines = json.loads(cli("doctor", "--json").out)
    names = [found["name"] for found in lines]
    assert names[:3] == ["python", "torch", "transformers"]
    assert {"sae-lens", "device", "memory", "bfloat16", "attention", "allocator", "threads", "disk", "hub"} <= set(
        names
    )
    assert all(found["state"] == "ok" or found["advice"] for found in lines)
    assert "sdpa" in cli("doctor").out


def test_a_package_is_missing_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    real = doctor.version

    def version(name: str) -> str:
        if name == "sae-lens":
            raise PackageNotFoundError(name)
        return "4.0" if name == "transformers" else real(name)

    monkeypatch.setattr(doctor, "version", version)
    assert line("sae-lens", tmp_path) == Line("sae-lens", "warn", "not installed", "run: pip install 'cocomix[sae]'")
    old = line("transformers", tmp_path)
    assert (old.state, old.value) == ("fail", "4.0")
    assert "pip install 'transformers>=" in old.advice
    result = cli("doctor", status=1)
    assert "error: transformers: 4.0; run: pip install" in result.err
    assert "cocomix[sae]" in result.out


@pytest.mark.parametrize(("found", "state"), [("3.10.14", "fail"), ("3.11.0", "ok"), ("3.13.1", "ok")])
def test_the_version_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, state: str) -> None:
    monkeypatch.setattr("platform.python_version", lambda: found)
    python = line("python", tmp_path)
    assert (python.state, python.value) == (state, found)
    assert ("3.11" in python.advice) == (state == "fail")


@pytest.mark.parametrize(("load", "state"), [(0.5, "ok"), (2.9, "ok"), (9.0, "warn")])
def test_a_loaded_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: float, state: str) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 2)
    monkeypatch.setattr("psutil.getloadavg", lambda: (load, 0.0, 0.0))
    found = line("load", tmp_path)
    assert found.state == state
    assert f"{load} programs want to run on 2 cores" in found.value


@pytest.mark.parametrize(("free", "state"), [(10**7, "fail"), (10**9, "warn"), (10**12, "ok")])
def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": free}))
    assert line("disk", tmp_path).state == state


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *arguments: False)
    assert "read-only" in line("disk", tmp_path).value


@pytest.mark.parametrize(("one", "both", "state"), [(60.0, 100.0, "ok"), (110.0, 100.0, "ok"), (200.0, 50.0, "warn")])
def test_threads_that_wait_for_busy_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: float, both: float, state: str
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr(doctor, "products_per_second", lambda threads: {1: one, 2: both}[threads])
    found = line("threads", tmp_path)
    assert found.state == state
    assert ("4.0 times" in found.value) == ("OMP_NUM_THREADS=1" in found.advice) == (state == "warn")


def test_too_many_threads_and_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 4096)
    monkeypatch.setattr(doctor, "available_memory", lambda device: 2**28)
    assert line("threads", tmp_path).advice.startswith("set OMP_NUM_THREADS=")
    assert line("memory", tmp_path).value == "0.2 GiB free"
    monkeypatch.setattr(doctor, "available_memory", lambda device: None)
    assert line("memory", tmp_path).state == "warn"


@pytest.mark.parametrize(("flags", "state"), [({"avx2"}, "warn"), ({"avx512_bf16", "amx_bf16"}, "ok")])
def test_bfloat16_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: set[str], state: str) -> None:
    monkeypatch.setattr(doctor, "cpu_flags", lambda: flags)
    assert doctor.default_device().type != "cpu" or line("bfloat16", tmp_path).state == state


@pytest.mark.parametrize(
    ("flags", "capability", "fast"),
    [({"amx_bf16"}, "AVX512", True), ({"avx512_bf16"}, "AVX512", False), ({"amx_bf16"}, "AVX2", False)],
)
def test_a_cpu_is_fast_in_bfloat16_by_amx_where_pytorch_may_use_it(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], capability: str, fast: bool
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: flags)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert device.fast_bfloat16(torch.device("cpu")) == fast


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.constants, "HF_HUB_OFFLINE", True)
    assert line("hub", tmp_path) == Line("hub", "ok", "not asked: HF_HUB_OFFLINE is set")
    monkeypatch.setattr(doctor.constants, "HF_HUB_OFFLINE", False)

    def refused(*arguments: Any, **keywords: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    assert "no route" in line("hub", tmp_path).value
    monkeypatch.setattr(doctor, "_HUB_SECONDS", 0.1)

    def slow(*arguments: Any, **keywords: Any) -> Any:
        time.sleep(1)
        raise OSError("too late")

    monkeypatch.setattr("urllib.request.urlopen", slow)
    started = time.perf_counter()
    found = doctor._hub()
    assert found.state == "warn"
    assert time.perf_counter() - started < 0.9
