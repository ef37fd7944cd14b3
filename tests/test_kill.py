"""A short form of `python -m tests.kill --kills 50`."""

import subprocess
import sys
from pathlib import Path

import pytest

from cocomix.artifacts import read_json

STAGES = ("prepare", "label", "checkpoint", "train", "eval")


@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path) -> None:
    chosen = [argument for stage in STAGES for argument in ("--stage", stage)]
    command = [sys.executable, "-m", "tests.kill", "--kills", "5", "--seed", "1", *chosen, "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = read_json(tmp_path / "kills.json")["stages"]
    assert set(stages) == set(STAGES)
    assert sum(tally["kills"] for tally in stages.values()) >= 5
    assert not any(tally["lost"] for tally in stages.values())
    assert "| together |" in (tmp_path / "kills.md").read_text(encoding="utf-8")
