"""The one place where a file of `torch.save` is read: tensors and plain values, never code."""

from pathlib import Path
from typing import Any

import torch

from cocomix.runtime.errors import CoCoMixError


def load_weights_only(path: Path) -> dict[str, Any]:
    """Read a dictionary of tensors and plain values that someone else saved with `torch.save`, to be stored as
    safetensors once.

    Args:
        path: the file. PyTorch's restricted unpickler reads it, which builds tensors, numbers, texts, lists and
            dictionaries and refuses everything else before it is run.

    Raises:
        CoCoMixError: the file is missing or damaged, holds code, or holds no dictionary.
    """
    if not path.is_file():
        raise CoCoMixError(f"{path} does not exist; give a file that torch.save wrote.")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - see the module's docstring
    except Exception as error:  # the unpickler and the archive reader raise errors of many kinds
        code = "Unsupported" in str(error) or "GLOBAL" in str(error)
        reason = "it holds objects that are no tensors, which would run code" if code else "it is damaged"
        raise CoCoMixError(f"{path} is not loaded: {reason}; use a file of plain tensors.") from error
    if not isinstance(value, dict):
        raise CoCoMixError(f"{path} holds a {type(value).__name__} and no dictionary of tensors; use a state dict.")
    return value
