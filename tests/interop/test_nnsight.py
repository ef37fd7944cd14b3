"""nnsight reads and edits a run's concepts: the cases of nnsight_cases.py, in a process of their own.

As it is imported, nnsight replaces `Tensor.backward` for the whole process and reads the source of every caller.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("nnsight") is None, reason="nnsight is not installed; run `make install`")
def test_the_cases_hold() -> None:
    cases = Path(__file__).with_name("nnsight_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, cwd=cases.parents[2], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
