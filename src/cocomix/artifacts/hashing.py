"""Content hashes of tensors and files."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["file_sha256", "tensor_sha256"]


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 (hex) of a tensor's dtype, shape and raw bytes."""
    digest = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
