"""Content hashes of tensors, files and JSON values."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing PyTorch takes seconds, and only `tensor_sha256` needs it
    from torch import Tensor


def tensor_sha256(tensor: "Tensor") -> str:
    """SHA-256 (hex) of a tensor's dtype, shape and raw bytes."""
    import torch

    digest = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint_json(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, independent of key order and whitespace."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
