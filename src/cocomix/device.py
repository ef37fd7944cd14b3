"""Where to compute: the only module that asks for devices."""

import torch

__all__ = ["default_device"]


def default_device() -> torch.device:
    """The machine's accelerator if PyTorch finds one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")
