"""The notebook, executed from its first cell to its last in a kernel of its own."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "examples" / "layer_freezing.ipynb"


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own, about event loops
def test_the_notebook_runs_and_shows_what_it_says(tmp_path):
    notebook = nbformat.read(PATH, as_version=4)
    shown = [_text(cell) for cell in notebook.cells]
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    for cell, before in zip(notebook.cells, shown, strict=True):
        # Numbers are measurements, and the probe's reasons are as long as they come.
        lines, expected = _text(cell).splitlines(), before.splitlines()
        assert abs(len(lines) - len(expected)) <= 4, cell.source
    pictures = [path.name for path in sorted(tmp_path.glob("*.png"))]
    assert pictures == ["plan.png", "probe.png", "sweep.png"]


def _text(cell: nbformat.NotebookNode) -> str:
    outputs = cell.get("outputs", [])
    return "".join(out.get("text", "") for out in outputs if out.get("name") == "stdout")
