"""Peak memory of pieces of work, in a process of its own.

    python -m benchmarks.peaks '{"device": "cpu", "rounds": 5}'

Prints one JSON object: case → contestant → bytes per round above what is held before the work begins (parameters,
optimizer state, inputs), as PyTorch's allocator handed them out.
"""

import gc
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.naive import NaiveStudent
from benchmarks.parts import head_work
from benchmarks.settings import Settings, Shape
from benchmarks.workload import adamw, random_model, student_loss, training_step, twin_loss
from cocomix.runtime.allocator import keep_freed_memory

__all__ = ["head_case", "step_case"]


def step_case(settings: Settings) -> tuple[str, Shape]:
    """Name and shape of the training step that is measured."""
    sizes = settings.sizes
    shape = replace(sizes.main, batch=sizes.memory_batch, context=sizes.memory_context, accumulation=1)
    return f"step, {shape.batch} × {shape.context} tokens, C = {shape.concepts:,}", shape


def head_case(positions: int, concepts: int) -> str:
    """Name of a measurement of the concept head alone."""
    return f"head, {positions:,} positions, C = {concepts:,}"


def main() -> None:
    """Measure every case; settings come as JSON on the command line."""
    settings = Settings(**json.loads(sys.argv[1]))
    device, dtype, sizes = settings.device, settings.dtypes[0], settings.sizes
    peaks: dict[str, dict[str, list[int]]] = {}

    name, step_shape = step_case(settings)
    for work in head_work(replace(sizes.main, concepts=64), 8, dtype, device).values():
        work()  # libraries take their workspace once
    heads = [(sizes.growth_context, concepts) for concepts in sizes.growth_concepts]
    heads.append((step_shape.batch * step_shape.context, sizes.main.concepts))
    for positions, concepts in heads:
        heads_of_case = head_work(replace(sizes.main, concepts=concepts), positions, dtype, device)
        peaks[head_case(positions, concepts)] = _alternate(heads_of_case, settings)
    peaks[name] = _alternate(_steps(step_shape, settings, dtype), settings)
    print(json.dumps(peaks))


def _steps(shape: Shape, settings: Settings, dtype: str) -> dict[str, Callable[[], None]]:
    """Whole training steps of ours and of the naive twin, whose optimizers hold their moments already."""
    device = settings.device
    student = random_model(shape.student, device)
    twin = NaiveStudent(student)
    our_optimizer, twin_optimizer = adamw(student), adamw(twin)

    def steps(size: Shape) -> dict[str, Callable[[], None]]:
        ours, naive = student_loss(student, size, device), twin_loss(twin, size, device)
        return {
            "fused": training_step(student, ours, settings, dtype, our_optimizer, 1),
            "naive": training_step(twin, naive, settings, dtype, twin_optimizer, 1),
        }

    for work in steps(replace(shape, batch=1, context=8)).values():
        work()
    return steps(shape)


def _alternate(contestants: Mapping[str, Callable[[], None]], settings: Settings) -> dict[str, list[int]]:
    peaks: dict[str, list[int]] = {name: [] for name in contestants}
    for _ in range(settings.rounds):
        for name, work in contestants.items():
            gc.collect()
            peaks[name].append(_peak_of(work, settings.device))
    return peaks


def _peak_of(work: Callable[[], None], device: str) -> int:
    """Bytes that `work` needs at most, above what is held when it begins."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.accelerator.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        work()
    assert traced.profiler is not None
    events = [event for event in traced.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(changes, initial=0))


if __name__ == "__main__":
    keep_freed_memory()
    main()
