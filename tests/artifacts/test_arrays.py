"""Memory maps of an artefact's arrays."""

import shutil
from pathlib import Path

import pytest

from cocomix.artifacts import Damaged
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
