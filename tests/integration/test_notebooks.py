"""The notebooks run from top to bottom and draw their figures; in git they have no outputs.

Here they read real logs cut short. Number 4 tunes on this machine, for a minute: ``LORIEN_NOTEBOOKS=full`` runs it too,
and all of them on everything that ships.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import sample
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FULL = os.environ.get("LORIEN_NOTEBOOKS") == "full"
LIVE = "4-new-target"
FIGURES = {
    "1-explore-logs": 4,
    "2-explain-features": 4,
    "3-train-and-judge": 5,
    LIVE: 1,
    "5-zero-shot-against-tuning": 3,
}
PNG = "iVBORw0KGgo"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the cell tagged "parameters" is to say here."""
    folder = tmp_path_factory.mktemp("notebooks")
    if FULL:
        return {"WORK": str(folder / "out")}
    sample.cut_short(folder / "logs", {"bvlc_alexnet": 8, "shufflenet": 8}, records=16)
    return {"DATASETS": str(folder / "logs"), "WORK": str(folder / "out"), "HOLDOUT": "shufflenet", "TIME_LIMIT_S": 10}


def test_none_is_left_out() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(FIGURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs(path: Path) -> None:
    book = json.loads(path.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert set(book["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem == LIVE and not FULL:
        pytest.skip("it tunes for a minute: LORIEN_NOTEBOOKS=full runs it")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    book = nbformat.read(path, as_version=4)
    (given,) = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
    known = {line.partition(" = ")[0] for line in given.source.splitlines()}
    given.source += "".join(f"\n{name} = {value!r}" for name, value in settings.items() if name in known)
    NotebookClient(book, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()

    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    told = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")
    assert not told or (path.stem == LIVE and "of the same family" in told)
    drawn = [output.data for output in outputs if "application/vnd.plotly.v1+json" in output.get("data", {})]
    assert len(drawn) == FIGURES[path.stem]
    for data in drawn:
        assert data["image/png"].startswith(PNG)
        traces = data["application/vnd.plotly.v1+json"]["data"]
        assert any(isinstance(trace["x"], list) and trace["x"] for trace in traces)
