"""The clock of every section: contestants take turns, so that a machine that slows down slows all of them."""

import gc
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["alternate"]


def alternate(
    contestants: Mapping[str, Callable[[], object]], rounds: int, device: str, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round.

    A round runs every contestant once, in the given order in even rounds and backwards in odd ones. The garbage
    collector is off while the clock runs, and an accelerator is waited for before and after each contestant.

    Args:
        contestants: name → work.
        rounds: timed rounds.
        device: `cpu` or the accelerator's type.
        warm_up: rounds before the first timed one.
    """
    for _ in range(warm_up):
        for work in contestants.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    gc.collect()
    gc.freeze()  # what is there now need not be looked through between the rounds
    gc.disable()
    try:
        for number in range(rounds):
            gc.collect()
            for name in names if number % 2 == 0 else reversed(names):
                _wait(device)
                start = time.perf_counter()
                contestants[name]()
                _wait(device)
                seconds[name].append(time.perf_counter() - start)
    finally:
        gc.unfreeze()
        gc.enable()
    return seconds


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()
