"""The examples run as a reader would run them, on a toy run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.workshop import Workshop

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_the_steering_notebook_runs(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COCOMIX_RUN", str(workshop.cocomix_run))
    monkeypatch.setenv("COCOMIX_PROMPT", "list of")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(EXAMPLES / "steering.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = ["".join(out.get("text", "") for out in cell.outputs) for cell in notebook.cells if "outputs" in cell]
    assert len(printed) == 7
    assert all(printed[1:])  # every cell after the imports says something
    assert printed[4].count("list of") == 3
    assert "correlation" in printed[6]
