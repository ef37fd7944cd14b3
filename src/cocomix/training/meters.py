"""What training counts between log lines and across checkpoints: sums of loss terms, and seconds."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class LossMeter:
    """Sums up what is logged on the device between log lines, so that no step waits for the host."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Any, Any]] = {}  # with what each is divided by: a number of steps, or another sum
        self._seen: set[str] = set()  # names of means that this step has brought already
        self._before = self._sums

    def begin_step(self) -> None:
        """Begin an optimizer step; remember the sums before it, for `forget_step`."""
        self._seen = set()
        self._before = dict(self._sums)

    def forget_step(self) -> None:
        """Take the step out of all averages."""
        self._sums = self._before

    def add(self, means: Mapping[str, Tensor], ratios: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add a micro-batch: its parts of the step's means; pairs (sum, count), pooled before they are divided."""
        parts = {name: (value, int(name not in self._seen)) for name, value in means.items()}
        self._seen |= means.keys()
        for name, pair in (parts | dict(ratios)).items():
            before = self._sums.get(name, (0, 0))
            self._sums[name] = (before[0] + _exact(pair[0]), before[1] + _exact(pair[1]))

    def averages(self, accelerator: Any) -> dict[str, float]:
        """Averages since the last call, means over the steps that had them, of all processes; then start anew."""
        sums, self._sums = self.state(accelerator), {}
        return {name: part / whole if whole else 0.0 for name, (part, whole) in sums.items()}

    def state(self, accelerator: Any) -> dict[str, tuple[float, float]]:
        """What was summed since the last log line, over all processes; numbers of steps are integers."""

        def summed(value: Tensor | int) -> float:
            return float(accelerator.reduce(value, "sum")) if isinstance(value, Tensor) else value

        return {name: (summed(part), summed(whole)) for name, (part, whole) in self._sums.items()}

    def restore(self, state: Mapping[str, Any], accelerator: Any) -> None:
        """Go on from a `state`; the first process takes all sums over."""
        dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64

        def share(value: float) -> Tensor | int:
            if isinstance(value, int):  # steps, which all processes have taken
                return value
            return torch.tensor(value if accelerator.is_main_process else 0.0, dtype=dtype, device=accelerator.device)

        self._sums = {name: (share(part), share(whole)) for name, (part, whole) in state.items()}


def _exact(value: Tensor | int) -> Tensor | int:
    """A detached tensor in float64, where the device has it."""
    if isinstance(value, int):
        return value
    return value.detach() if value.device.type == "mps" else value.detach().double()


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
        self._stop(device)
        try:
            yield
        finally:
            if was_running:
                self._started = time.perf_counter()

    def _stop(self, device: torch.device) -> None:
        if self._started is not None and device.type != "cpu":
            torch.accelerator.synchronize(device)
        self.elapsed = self.seconds
        self._started = None
