"""The clock, the ratios and the peak-memory probe."""

import time

import torch
from benchmarks.peaks import _peak_of
from benchmarks.ratios import ratio
from benchmarks.timing import alternate


def test_contestants_take_turns_in_both_directions() -> None:
    order: list[str] = []
    seconds = alternate({name: lambda name=name: order.append(name) for name in "ab"}, 3, "cpu", warm_up=1)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}


def test_seconds_belong_to_their_contestant() -> None:
    seconds = alternate({"slow": lambda: time.sleep(0.02), "quick": lambda: None}, 2, "cpu")
    assert min(seconds["slow"]) >= 0.02 > max(seconds["quick"])


def test_ratios_are_formed_round_by_round() -> None:
    found = ratio("case", "a ÷ b", [2.0, 9.0, 4.0], [1.0, 3.0, 8.0], by_flops=4.0)
    assert (found.minimum, found.median, found.maximum) == (0.5, 2.0, 3.0)
    assert (found.numerator, found.denominator, found.rounds) == (4.0, 3.0, 3)
    assert found.distance == 0.5


def test_peak_counts_what_was_freed_again() -> None:
    held = torch.ones(2**22)  # 16 MiB that are there before

    def work() -> None:
        total = held * 2  # 16 MiB
        total = total + torch.ones(2**22)  # and two more at once

    assert 48 * 2**20 <= _peak_of(work, "cpu") < 48 * 2**20 + 1024  # and the scalars
    assert _peak_of(lambda: held.mul_(2), "cpu") < 1024
