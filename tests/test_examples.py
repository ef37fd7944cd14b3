"""The examples run as a reader would run them, on a toy run."""

import runpy
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_steering(workshop, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["steering.py", str(workshop.cocomix_run), "list of"])
    runpy.run_path(str(EXAMPLES / "steering.py"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("concept ")
    assert sum(line.startswith("list of") for line in lines) == 4
