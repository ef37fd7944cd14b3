"""PyTorch's threads, chosen by measurement where other programs keep the cores busy."""

from collections.abc import Iterator

import pytest
import torch

from cocomix.runtime import device
from cocomix.runtime.console import set_up_logging
from cocomix.runtime.device import choose_threads, products_per_second


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(device, "default_device", lambda: torch.device("cpu"))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    set_up_logging()
    yield
    torch.set_num_threads(before)


BUSY, FREE = {4: 10.0, 2: 20.0, 1: 300.0}, {4: 100.0, 2: 60.0, 1: 110.0}


@pytest.mark.parametrize(("speeds", "chosen"), [(BUSY, 1), (FREE, 4), ({4: 10.0, 2: 50.0, 1: 40.0}, 2)])
def test_the_fastest_is_chosen_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], speeds: dict[int, float], chosen: int
) -> None:
    monkeypatch.setattr(device, "products_per_second", speeds.__getitem__)
    choose_threads()
    assert torch.get_num_threads() == chosen
    assert (f"{chosen} of 4 threads" in capsys.readouterr().err) == (chosen != 4)


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "WORLD_SIZE"])
def test_what_a_person_or_a_launcher_set_stays(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "4")
    monkeypatch.setattr(device, "products_per_second", BUSY.__getitem__)
    choose_threads()
    assert torch.get_num_threads() == 4


def test_measuring_puts_the_threads_back() -> None:
    assert products_per_second(1) > 0
    assert torch.get_num_threads() == 4
