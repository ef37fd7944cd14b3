"""What a run says to and hears from outside while it goes on: metrics, trackers, progress, SIGTERM, a profile.

Trackers are transformers' integrations: they take their accounts and addresses from the environment or from their own
login, never from a recipe, and see the run's numbers, its `TrainingArguments` and its model's configuration.
"""

import json
import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, schedule
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from cocomix.artifacts import write_text
from cocomix.runtime.errors import CoCoMixError, require_extra

logger = logging.getLogger(__name__)

_FIRST = ("step", "tokens", "seconds", "flops", "loss")
_LEFT_OUT = ("epoch",)  # tokens say it more exactly
_SETTLING_STEPS = 2  # allocations, first kernels and compilation are not what a run consists of


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends one JSON object per log line: step, tokens, seconds, their training `flops`, and the numbers logged."""

    def __init__(self, path: Path, flops: Callable[[float], float]) -> None:
        self.path, self.flops = path, flops

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last step is logged in any case: its learning rate tells whether the schedule has ended."""
        control.should_log |= state.global_step >= state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Write the line, unless it is the Trainer's summary after the last step."""
        if not state.is_world_process_zero or logs is None or not {"loss", "eval_loss"} & logs.keys():
            return
        row = {**logs, "step": state.global_step, "flops": self.flops(logs["tokens"])}
        names = [name for name in dict.fromkeys((*_FIRST, *row)) if name in row and name not in _LEFT_OUT]
        line = json.dumps({name: row[name] for name in names}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def keep_metrics_until(path: Path, step: int) -> None:
    """Drop the lines an interrupted run wrote after the checkpoint it resumes from."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the line that was being written when the run was killed
            break
        if row["step"] <= step:
            kept.append(line)
    write_text(path, "".join(line + "\n" for line in kept))


class Progress(TrainerCallback):  # type: ignore[misc]
    """Tells `advance` the tokens of every step, and says evaluation losses as they come."""

    def __init__(self, tokens_seen: Callable[[int], int], advance: Callable[[float], None]) -> None:
        self.tokens_seen, self.advance = tokens_seen, advance

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        self.advance(self.tokens_seen(step) - self.tokens_seen(step - 1))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs is not None and "eval_loss" in logs and state.is_world_process_zero:
            parts = [f"{logs['tokens']:,.0f} tokens: validation loss {logs['eval_loss']:.4f} nats/token"]
            if "eval_concept_recall" in logs:
                parts.append(f"concept recall {logs['eval_concept_recall']:.1%}")
            logger.info(", ".join(parts))


class SaveAndStop(TrainerCallback):  # type: ignore[misc]
    """Ends training after a step, with a checkpoint, once something asks for it.

    Several processes must agree, so they ask one another; they do so at log lines only, where they wait for their
    devices anyway.
    """

    def __init__(self, asked: Callable[[], bool], accelerator: Any) -> None:
        self.asked, self.accelerator = asked, accelerator

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        several = self.accelerator.num_processes > 1
        if state.global_step >= state.max_steps or (several and not control.should_log):
            return
        asked = self.asked()
        if several:
            asked = bool(self.accelerator.reduce(torch.tensor(float(asked), device=self.accelerator.device), "sum") > 0)
        if asked:
            control.should_save = control.should_training_stop = True


class StepProfiler(TrainerCallback):  # type: ignore[misc]
    """Profiles `steps` optimizer steps after two that settle in, on the CPU and on the accelerator if there is one.

    Writes `trace.json` (for chrome://tracing or ui.perfetto.dev) and `operators.txt` (operators by their own time) when
    the steps are done. Profiled steps take longer than others, so that a profiled run's seconds compare with nobody's.

    Raises:
        CoCoMixError: `steps` is below 1, or (when training begins) more than the run has left.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        if steps < 1:
            raise CoCoMixError(f"--profile {steps} must be at least 1 step.")
        self.folder, self.steps = folder, steps
        self._profiler: profile | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        left = state.max_steps - state.global_step
        if self.steps + _SETTLING_STEPS > left:
            raise CoCoMixError(
                f"--profile {self.steps} needs {self.steps + _SETTLING_STEPS} steps ({_SETTLING_STEPS} to settle in), "
                f"but this run has {left}; lower it or train longer."
            )
        if not state.is_world_process_zero:
            return
        self._profiler = profile(
            schedule=schedule(wait=_SETTLING_STEPS - 1, warmup=1, active=self.steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._profiler is not None:
            self._profiler.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
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


TENSORBOARD = "tensorboard"
_IN_EXTRA = (TENSORBOARD, "mlflow", "trackio", "wandb")
"""What `pip install 'cocomix[track]'` brings, by the names that are imported."""


def trackers(training: Mapping[str, Any]) -> tuple[str, ...]:
    """Who is told about a run, from a recipe's `training.report_to`: a name, a list of names, or `none`.

    By default TensorBoard where it is installed, and nobody where it is not.
    """
    asked = training.get("report_to", TENSORBOARD if find_spec(TENSORBOARD) else "none")
    names = [asked] if isinstance(asked, str) else asked
    if names in (None, ["none"], []):
        return ()
    known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CoCoMixError(f"training.report_to is {asked!r}; give none, a name or a list of names among {known}.")
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise CoCoMixError(f"training.report_to names {name!r}; trackers are {known}, or none alone.")
        if name in _IN_EXTRA:
            require_extra("track", name, purpose=f"training.report_to: {name}")
    return tuple(dict.fromkeys(names))
