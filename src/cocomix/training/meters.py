"""What training counts between log lines and across checkpoints: sums of loss terms, and seconds."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cocomix.training.objectives import ObjectiveOutput

__all__ = ["LossMeter", "TrainingClock", "over_processes"]


class LossMeter:
    """Sums loss terms on the device between log lines, so that no step waits for the host."""

    def __init__(self) -> None:
        self.last_step = 0
        self._terms: dict[str, Tensor] = {}
        self._ratios: dict[str, tuple[Tensor, Tensor]] = {}
        self._before = (self._terms, self._ratios)

    def begin_step(self) -> None:
        """Remember the sums before a step, for `forget_step`."""
        self._before = (dict(self._terms), dict(self._ratios))

    def forget_step(self) -> None:
        """Take the step out of sums and averages."""
        self._terms, self._ratios = self._before
        self.last_step += 1

    def add(self, output: ObjectiveOutput) -> None:
        """Add a micro-batch."""
        for name, value in {"loss": output.loss, **output.terms}.items():
            value = value.detach().double() if value.device.type != "mps" else value.detach()
            self._terms[name] = self._terms[name] + value if name in self._terms else value
        for name, (part, whole) in output.ratios.items():
            before = self._ratios.get(name)
            self._ratios[name] = (part, whole) if before is None else (before[0] + part, before[1] + whole)

    def averages(self, step: int, accelerator: Any) -> dict[str, float]:
        """Per-step averages since the last call, summed over processes, and the ratios; then start anew."""
        steps = max(step - self.last_step, 1)
        sums = self.state(accelerator)
        values = {name: value / steps for name, value in sums["terms"].items()}
        values |= {name: part / whole if whole else 0.0 for name, (part, whole) in sums["ratios"].items()}
        self.last_step, self._terms, self._ratios = step, {}, {}
        return values

    def state(self, accelerator: Any) -> dict[str, Any]:
        """What was summed since the last log line, over all processes, as JSON."""
        return {
            "last_step": self.last_step,
            "terms": {name: float(over_processes(value, accelerator)) for name, value in self._terms.items()},
            "ratios": {
                name: [float(over_processes(value, accelerator)) for value in pair]
                for name, pair in self._ratios.items()
            },
        }

    def restore(self, state: Mapping[str, Any], accelerator: Any) -> None:
        """Go on from a `state`; the sums of all processes go to the first."""
        self.last_step = state["last_step"]
        if not accelerator.is_main_process:
            return
        dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64

        def tensor(value: float) -> Tensor:
            return torch.tensor(value, dtype=dtype, device=accelerator.device)

        self._terms = {name: tensor(value) for name, value in state["terms"].items()}
        self._ratios = {name: (tensor(part), tensor(whole)) for name, (part, whole) in state["ratios"].items()}


def over_processes(value: Tensor, accelerator: Any) -> Tensor:
    """The sum of a value over all processes."""
    if accelerator.num_processes == 1:
        return value
    reduced: Tensor = accelerator.reduce(value, reduction="sum")
    return reduced


class TrainingClock:
    """Seconds spent training; stands still during evaluation and saving."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.last_mark = (0.0, 0.0)
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.elapsed + (0.0 if self._started is None else time.perf_counter() - self._started)

    def rate(self, tokens: float) -> float:
        """Tokens per second since the last call."""
        seconds = self.seconds
        rate = (tokens - self.last_mark[0]) / max(seconds - self.last_mark[1], 1e-9)
        self.last_mark = (tokens, seconds)
        return rate

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Count the block's time."""
        self._started = time.perf_counter()
        try:
            yield
        finally:
            self._stop(device)

    @contextmanager
    def paused(self, device: torch.device) -> Iterator[None]:
        """Do not count the block's time, if the clock runs at all."""
        was_running = self._started is not None
        if was_running:
            self._stop(device)
        try:
            yield
        finally:
            if was_running:
                self._started = time.perf_counter()

    def _stop(self, device: torch.device) -> None:
        if self._started is None:
            return
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        self.elapsed += time.perf_counter() - self._started
        self._started = None
