"""The notebooks run, and what is committed of them shows their results and nothing of a machine."""

import base64
import re
from pathlib import Path

import nbformat
import pytest

from notebooks.execute import FOLDER, KERNEL, executed, main

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
PRIVATE = re.compile(
    r"/(?:home|root|tmp|Users|work|usr|opt)/|\\Users\\|site-packages|\b20\d\d-\d\d-\d\d\b|\b\d\d:\d\d:\d\d\b"
)


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text_of(output):
    data = output.get("data", {})
    return "".join([output.get("text", ""), *(text for kind, text in sorted(data.items()) if kind.startswith("text/"))])


def pictures_of(notebook):
    found = [output.get("data", {}) for output in outputs_of(notebook)]
    return [base64.b64decode(data[kind]) for data in found for kind in ("image/png", "image/jpeg") if kind in data]


def test_there_are_some():
    assert {"quick_start", "convergence", "gaussians", "extend"} <= set(NAMES)


@pytest.fixture(scope="module")
def fresh():
    """Every notebook, executed anew."""
    return dict(zip(NAMES, executed(NOTEBOOKS), strict=True))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_runs(path, fresh):
    fresh, kept = fresh[path.stem], nbformat.read(path, as_version=4)
    assert not [output for output in outputs_of(fresh) if output.output_type in ("error", "stream")], "a clean run"
    assert len(pictures_of(fresh)) == len(pictures_of(kept)) > 0
    # Numbers may differ by a digit from machine to machine; what they are about does not.
    assert [words(output) for output in outputs_of(fresh)] == [words(output) for output in outputs_of(kept)]


def words(output):
    return re.findall(r"[A-Za-z_]+", text_of(output))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_what_is_committed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert dict(notebook.metadata) == KERNEL and all(not cell.metadata for cell in notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), (
        "run it: python -m notebooks.execute"
    )
    assert not [output for output in outputs_of(notebook) if output.output_type in ("error", "stream")]
    for output in outputs_of(notebook):
        assert not PRIVATE.search(text_of(output)), text_of(output)
    for cell in notebook.cells:
        assert not PRIVATE.search(cell.source)
    for picture in pictures_of(notebook):
        assert len(picture) < 150_000
        assert b"tEXtSoftware" in picture[:200] or b"tEXt" not in picture, (
            "no text in a picture but the version of Matplotlib"
        )
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_files_that_it_links_to_are_there(path):
    cells = nbformat.read(path, as_version=4).cells
    links = [
        link for cell in cells if cell.cell_type == "markdown" for link in re.findall(r"\]\(([\w./]+)\)", cell.source)
    ]
    assert all((Path(FOLDER) / link).exists() for link in links), links


def test_a_misspelt_notebook_is_an_error_that_names_the_nearest(monkeypatch):
    monkeypatch.setattr("sys.argv", ["execute", "quickstart"])
    with pytest.raises(SystemExit, match="did you mean 'quick_start'"):
        main()
