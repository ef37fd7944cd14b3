"""Memory maps of an artefact's `.npy` files, of which a process keeps a bounded number."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cocomix.artifacts.artifact import Artifact
from cocomix.artifacts.faults import Damaged, unreadable

__all__ = ["mapped_array"]

_OPEN_MAPS = 64
"""Files that a process keeps mapped. Linux allows 65,530 maps a process, and a corpus of 1T tokens has some 4,000 files
of the default size; mapping one again costs about 0.1 ms."""


def mapped_array(artifact: Artifact[Any], name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A `.npy` file of an artefact as a read-only view of its memory map; it is checked at its first use.

    Args:
        artifact: local, or of a URL, from which the file is fetched.
        name: of the file.
        dtype: that its array must have.
        shape: likewise.

    Raises:
        Damaged: the file is missing, not the one that was written, or holds another array.
        CoCoMixError: the system cannot open or map another file.
    """
    # The hash is part of the key: another artefact may be put at the same path while this process lives.
    return _mapped(_Key(artifact.path, name, artifact.entry(name).sha256, artifact), dtype, shape)


@dataclass(frozen=True)
class _Key:
    folder: Path
    name: str
    sha256: str
    artifact: Artifact[Any] = field(compare=False)


@lru_cache(maxsize=_OPEN_MAPS)
def _mapped(key: _Key, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    path, remedy = key.artifact.file(key.name), f"make it again with `{key.artifact.made_by}`"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:  # a header that is none, or a file shorter than it says
        raise Damaged(f"{path} is no .npy file ({error}); {remedy}.", key.name) from error
    if array.dtype != dtype or array.shape != shape:
        raise Damaged(
            f"{path} holds {array.dtype} {list(array.shape)} and not {dtype} {list(shape)}, as the manifest says; "
            f"{remedy}.",
            key.name,
        )
    return np.asarray(array)
