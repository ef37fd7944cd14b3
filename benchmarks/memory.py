"""Peak memory of the training step and of the concept head, against the naive twin's."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

from benchmarks.peaks import head_case, step_case
from benchmarks.ratios import Section, ratio
from benchmarks.settings import Settings

__all__ = ["measure"]

_CAPTION = (
    "Memory handed out by PyTorch's allocator, at its highest above parameters, optimizer state and inputs, in that of "
    "the naive twin (without its labels). Gradients count as part of the work."
)


def measure(settings: Settings) -> Section:
    """Run `benchmarks.peaks` in a process of its own and divide."""
    sizes = settings.sizes
    step, step_shape = step_case(settings)
    config = {"shape": asdict(step_shape), "concepts": sizes.growth_concepts, "dtype": settings.dtypes[0]}
    peaks = _peaks(settings)
    target = "≤ 0.5" if settings.device == "cpu" and step_shape.name == "69M" else ""
    curve = {head_case(sizes.growth_context, count): count for count in sizes.growth_concepts}
    ratios = []
    for case, each in peaks.items():
        along = {"axis": "concepts", "x": curve[case]} if case in curve else {}
        ratios.append(
            ratio(
                case,
                "peak memory, CoCoMix ÷ naive twin",
                [peak / 2**20 for peak in each["fused"]],
                [peak / 2**20 for peak in each["naive"]],
                "MiB",
                target=target if case == step else "",
                **along,
            )
        )
    return Section("Peak memory", _CAPTION, config, ratios)


def _peaks(settings: Settings) -> dict[str, dict[str, list[int]]]:
    """What the process prints; the profiler, which would write two lines for each measurement, is told not to."""
    environment = {**os.environ, "KINETO_LOG_LEVEL": "99"}
    command = [sys.executable, "-m", "benchmarks.peaks", json.dumps(asdict(settings))]
    finished = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    peaks: dict[str, dict[str, list[int]]] = json.loads(finished.stdout.splitlines()[-1])
    return peaks
