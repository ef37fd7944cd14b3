"""Memory maps of an artefact's arrays."""

import gc
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cocomix.artifacts import Damaged, arrays
from cocomix.data import Tokens
from tests.workshop import Workshop


def test_a_file_cut_while_it_is_mapped_is_damage(workshop: Workshop, tmp_path: Path) -> None:
    """Without a look at the file, reading beyond its new end ends the process (SIGBUS)."""
    blocks = Tokens.open(shutil.copytree(workshop.data, tmp_path / "data")).split("train")
    first = blocks[0]["input_ids"].tolist()
    file = tmp_path / "data" / "train-00000.npy"
    content = file.read_bytes()
    with file.open("r+b") as stream:
        stream.truncate(10)
    with pytest.raises(Damaged, match=r"train-00000\.npy"):
        blocks[0]
    file.write_bytes(content)
    assert blocks[0]["input_ids"].tolist() == first


def test_threads_that_map_at_the_same_time_find_no_damage(workshop: Workshop) -> None:
    """Python 3.11's parser, which reads NumPy's headers, counts its depth for all threads together, and may be off."""
    tokens = Tokens.open(workshop.data)

    def deep(frames: int, look: Callable[[], Any]) -> None:
        look() if frames == 0 else deep(frames - 1, look)

    def look() -> None:
        arrays._maps.clear()
        tokens.split("train")[0]

    def switch(*_: Any) -> None:
        time.sleep(0)  # lets another thread run, wherever memory is collected

    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    gc.callbacks.append(switch)
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda frames: [deep(frames, look) for _ in range(400)], (0, 10, 20, 30)))
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(switch)
