"""Memory maps of an artefact's `.npy` files, of which a process keeps a bounded number."""

import mmap
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cocomix.artifacts.artifact import Artifact
from cocomix.artifacts.faults import Damaged, unreadable

_OPEN_MAPS = 64
"""Files that a process keeps mapped. Linux allows 65,530 maps a process, and a corpus of 1T tokens has some 4,000 files
of the default size; mapping one again costs about 0.1 ms."""
_RANDOM: int | None = getattr(mmap, "MADV_RANDOM", None)  # not every system takes advice
_SECONDS = 1.0
"""How often the maps of files that left a bounded cache are looked for: until they are closed, the disk keeps these."""


class _Map(NamedTuple):
    array: NDArray[Any]
    path: Path
    state: tuple[int, ...] | None
    bounded: bool


_maps: dict[tuple[Path, str, str, bool], _Map] = {}
"""The longest unused first. Single operations of a dict are safe between threads, and no lock is there to be forked."""
_last_look = 0.0


def mapped_array(
    artifact: Artifact[Any], name: str, dtype: np.dtype[Any], shape: tuple[int, ...], *, scattered: bool = False
) -> NDArray[Any]:
    """A `.npy` file of an artefact as a read-only view of its memory map; it is checked at its first use.

    Of one that is `scattered`, read here and there, the system need not read ahead (5.8 → 0.45 ms for a block of a cold
    file). Raises `Damaged` where the file is missing, not the one that was written, or of another type or shape;
    `CoCoMixError` where the system cannot open or map another file.
    """
    cache = artifact.caches.get(name)
    folder = artifact.path if cache is None else cache.folder
    # The hash is part of the key: another artefact may be put at the same path while this process lives.
    key = (folder, name, artifact.entry(name).sha256, scattered)
    if cache is not None:
        _close_removed()
    found = _maps.pop(key, None)
    # Reading a map beyond the end of a file that was cut meanwhile would end the process (SIGBUS).
    if found is None or _state(found.path) != found.state:
        array, path = _map(artifact, name, dtype, shape, scattered)
        found = _Map(array, path, _state(path), cache is not None)
    _maps[key] = found
    for old in list(_maps)[:-_OPEN_MAPS]:
        _maps.pop(old, None)
    return found.array


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written or replaced; `None` where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _close_removed() -> None:
    """Close the maps of files that are no longer in their cache."""
    global _last_look
    if time.monotonic() - _last_look > _SECONDS:
        _last_look = time.monotonic()
        for key, found in list(_maps.items()):
            if found.bounded and not found.path.exists():
                _maps.pop(key, None)


def _map(
    artifact: Artifact[Any], name: str, dtype: np.dtype[Any], shape: tuple[int, ...], scattered: bool
) -> tuple[NDArray[Any], Path]:
    path, remedy = artifact.file(name), f"make it again with `{artifact.made_by}`"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and name in artifact.caches:  # just removed, to make room for another
            return _map(artifact, name, dtype, shape, scattered)
        raise unreadable(path, error) from error
    except SystemError:  # threads share the depth of the parser that reads headers in Python 3.11; no lock, see `_maps`
        return _map(artifact, name, dtype, shape, scattered)
    except ValueError as error:  # a header that is none, or a file shorter than it says
        raise Damaged(f"{path} is no .npy file ({error}); {remedy}.", name) from error
    if array.dtype != dtype or array.shape != shape:
        raise Damaged(
            f"{path} holds {array.dtype} {list(array.shape)} and not {dtype} {list(shape)}, as the manifest says; "
            f"{remedy}.",
            name,
        )
    if scattered and _RANDOM is not None:
        array._mmap.madvise(_RANDOM)
    return np.asarray(array), path
