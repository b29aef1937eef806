"""The notebook runs from its first cell to its last, and what it says it shows is there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook" / "step_by_step.ipynb"
EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Execute the notebook in a process of its own; return its cells of code with their outputs."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    root = tmp_path_factory.mktemp("notebook")
    places = {name: str(root / name) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(root / "done.ipynb")],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=root,
        env={**os.environ, **places},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = json.loads((root / "done.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(cell: Any) -> str:
    """Return what a cell shows: pictures, values, printed text."""
    parts = []
    for output in cell["outputs"]:
        parts.append("".join(output.get("text", "")))
        for data in output.get("data", {}).values():
            parts.append("".join(data))
    return "\n".join(parts)


def of(cells: list[Any], source: str) -> str:
    return next(shown(cell) for cell in cells if source in "".join(cell["source"]))


def test_no_outputs_are_kept_in_the_repository() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook["cells"])


def test_every_picture_is_drawn(cells: list[Any]) -> None:
    drawing = [cell for cell in cells if "draw_" in "".join(cell["source"]) and "import" not in "".join(cell["source"])]
    assert len(drawing) >= 9
    assert all("<svg" in shown(cell) for cell in drawing)


def test_what_is_shown_is_what_the_text_says(cells: list[Any]) -> None:
    assert of(cells, "XENVER_version").strip() == "(4, 17)"
    assert "-EFAULT" in of(cells, "XENVER_extraversion")
    assert "-ENOSYS" in of(cells, "XENVER_extraversion")
    assert "Bob's bit before he runs: True" in of(cells, "Bob's bit")
    assert "Hello from Bob!" in of(cells, "Hello from Bob!")
    assert of(cells, "statuses = []").strip() == "[-1, -3]"
    assert of(cells, "request_overflow").strip() == "(True, 31)"
    assert "status 0" in of(cells, "gnttab_unmap_grant_ref")


def test_pictures_follow_the_state(cells: list[Any]) -> None:
    waiting, bound = of(cells, "EVTCHNOP_alloc_unbound"), of(cells, "EVTCHNOP_bind_interdomain")
    assert "waits for domain 2" in waiting
    assert "<line" not in waiting
    assert "<line" in bound
    assert "read, written" in of(cells, '"handle", mapping.handle')
    assert "read, written" not in of(cells, "gnttab_unmap_grant_ref")
    blue, yellow, green = "#93c5fd", "#fcd34d", "#86efac"
    # One of each colour is in the legend.
    pushed, taken = of(cells, "push_requests_and_check_notify"), of(cells, "push_responses_and_check_notify")
    assert [pushed.count(colour) - 1 for colour in (blue, yellow, green)] == [3, 0, 0]
    assert [taken.count(colour) - 1 for colour in (blue, yellow, green)] == [1, 1, 1]
