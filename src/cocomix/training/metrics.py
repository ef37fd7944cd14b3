"""What a run says to and hears from outside while it goes on: `metrics.jsonl`, trackers, a progress bar, and SIGTERM.

Trackers are transformers' integrations: they take their accounts and addresses from the environment or from their own
login, never from a recipe, and see the run's numbers, its `TrainingArguments` and its model's configuration.
"""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from cocomix.artifacts import write_text
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError, require_extra

logger = logging.getLogger(__name__)

_FIRST = ("step", "tokens", "seconds", "flops", "loss")
_LEFT_OUT = ("epoch",)  # tokens say it more exactly


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends one JSON object per log line: step, tokens, seconds, training FLOPs so far, and the numbers logged.

    Args:
        path: the file, created if missing.
        flops_per_token: training FLOPs per token.
    """

    def __init__(self, path: Path, flops_per_token: float) -> None:
        self.path = path
        self.flops_per_token = flops_per_token

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Write the line, unless it is the Trainer's summary after the last step."""
        if not state.is_world_process_zero or logs is None or not {"loss", "eval_loss"} & logs.keys():
            return
        row = {**logs, "step": state.global_step, "flops": logs["tokens"] * self.flops_per_token}
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


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """Shows training in tokens, with speed and time remaining; says evaluation losses as they come.

    Args:
        tokens_per_step: tokens of one optimizer step.
    """

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self._open = ExitStack()
        self._advance: Callable[[float], None] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar at the step training starts from."""
        total, done = state.max_steps * self.tokens_per_step, state.global_step * self.tokens_per_step
        self._advance = self._open.enter_context(progress("training", total, "tokens", done=done))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance by one step."""
        if self._advance is not None:
            self._advance(self.tokens_per_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Say an evaluation's result in one line."""
        if logs is not None and "eval_loss" in logs and state.is_world_process_zero:
            parts = [f"{logs['tokens']:,.0f} tokens: validation loss {logs['eval_loss']:.4f} nats/token"]
            if "eval_concept_recall" in logs:
                parts.append(f"concept recall {logs['eval_concept_recall']:.1%}")
            logger.info(", ".join(parts))

    def close(self) -> None:
        """Take the bar down, however training ended."""
        self._open.close()


class SaveAndStop(TrainerCallback):  # type: ignore[misc]
    """Ends training after a step, with a checkpoint, once something asks for it.

    Several processes must agree, so they ask one another; they do so at log lines only, where they wait for their
    devices anyway.

    Args:
        asked: whether this process should stop.
        accelerator: the Trainer's.
    """

    def __init__(self, asked: Callable[[], bool], accelerator: Any) -> None:
        self.asked = asked
        self.accelerator = accelerator

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, if it is time."""
        if state.global_step < state.max_steps and self._all_asked(control.should_log):
            control.should_save = control.should_training_stop = True

    def _all_asked(self, at_log_line: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return self.asked()
        if not at_log_line:
            return False
        asked = torch.tensor(float(self.asked()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum") > 0)


TENSORBOARD = "tensorboard"

_IN_EXTRA = (TENSORBOARD, "mlflow", "trackio", "wandb")
"""What `pip install 'cocomix[track]'` brings, by the names that are imported."""


def trackers(training: Mapping[str, Any]) -> tuple[str, ...]:
    """Who is told about a run, from a recipe's `training.report_to`: a name, a list of names, or `none`.

    By default TensorBoard where it is installed, and nobody where it is not.

    Raises:
        CoCoMixError: it is neither; a name is unknown; the package of a tracker is not installed.
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
