"""Where to compute: the only module that asks for devices."""

import torch

__all__ = ["default_device", "worker_device"]


def default_device() -> torch.device:
    """The machine's accelerator if PyTorch finds one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def worker_device(index: int) -> torch.device:
    """The device of one of several processes on this machine: they take the accelerators in turn, or share the CPU."""
    device = default_device()
    if device.type == "cpu":
        return device
    return torch.device(device.type, index % torch.accelerator.device_count())
