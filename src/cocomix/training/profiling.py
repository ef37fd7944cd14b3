"""Where the time of a training step goes: a trace of a few steps (`cocomix train --profile N`)."""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule
from transformers import TrainerCallback

from cocomix.artifacts import write_text
from cocomix.runtime.errors import CoCoMixError

_SETTLING_STEPS = 2  # allocations, first kernels and compilation are not what a run consists of


class StepProfiler(TrainerCallback):  # type: ignore[misc]
    """Profiles `steps` optimizer steps after two that settle in, on the CPU and on the accelerator if there is one.

    Writes `trace.json` (for chrome://tracing or ui.perfetto.dev) and `operators.txt` (operators by their own time) when
    the steps are done. Profiled steps take longer than others, so that a profiled run's seconds compare with nobody's.

    Args:
        folder: where to write; made when there is something to write.
        steps: how many steps to record, at least 1.

    Raises:
        CoCoMixError: `steps` is below 1, or (when training begins) more than the run has left.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        if steps < 1:
            raise CoCoMixError(f"--profile {steps} must be at least 1 step.")
        self.folder, self.steps = folder, steps
        self._profiler: profile | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start counting steps."""
        left = state.max_steps - state.global_step
        if self.steps + _SETTLING_STEPS > left:
            raise CoCoMixError(
                f"--profile {self.steps} needs {self.steps + _SETTLING_STEPS} steps ({_SETTLING_STEPS} to settle in), "
                f"but this run has {left}; lower it or train longer."
            )
        if not state.is_world_process_zero:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=_SETTLING_STEPS - 1, warmup=1, active=self.steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step; the trace is written by the last one."""
        if self._profiler is not None:
            self._profiler.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let go of the profiler."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _write(self, recorded: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / "trace.partial.json"
        recorded.export_chrome_trace(str(aside))
        aside.replace(self.folder / "trace.json")
        own_time = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=own_time, row_limit=40, max_name_column_width=60)
        write_text(self.folder / "operators.txt", table + "\n")
