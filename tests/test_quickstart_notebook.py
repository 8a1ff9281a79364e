"""The quick-start notebook runs from top to bottom."""

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_quickstart(tmp_path, monkeypatch):
    folder = tmp_path / "examples"
    folder.mkdir()
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    notebook = nbformat.read(shutil.copy(ROOT / "examples" / "quickstart.ipynb", folder), as_version=4)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JUPYTER_PATH", str(Path(sys.prefix) / "share" / "jupyter"))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    html = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output and "text/html" in output["data"]
    ]
    assert len(html) == 1 and "<video" in html[0]
    assert (folder / "quickstart.mp4").stat().st_size > 0
    assert notebook.cells[-1]["outputs"][0]["data"]["text/plain"] == "(5, 25.0)"
