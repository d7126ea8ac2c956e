"""`python -m notebooks.execute [NAME ...]`: runs the notebooks (all, or those named) and writes their outputs in place.

Needs the extra "notebooks". What is written names no person, path, time or version of Python.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from ua import plugins
from ua.tracking import write_text

FOLDER = Path(__file__).resolve().parent
LARGEST_PNG = 100_000  # bytes
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def executed(paths: Sequence[Path]) -> list[nbformat.NotebookNode]:
    """The notebooks with fresh outputs, one after the other in one kernel, each without the names of those before it.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message shows which.
    """
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    cells = []
    for notebook in notebooks:
        cells += [new_code_cell("%reset -f"), *notebook.cells]
    # Pictures that a page shows well and a repository keeps lightly.
    figures = "{'dpi': 110, 'bbox_inches': 'tight', 'pil_kwargs': {'optimize': True}}"
    client = NotebookClient(
        new_notebook(cells=cells),
        kernel_name="python3",
        record_timing=False,
        timeout=300,
        extra_arguments=[f"--InlineBackend.print_figure_kwargs={figures}"],
    )
    with tempfile.TemporaryDirectory() as folder:  # what a notebook writes does not stay
        client.resources = {"metadata": {"path": folder}}
        client.execute()
    for notebook in notebooks:
        notebook.metadata = nbformat.from_dict(KERNEL)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for number, cell in enumerate(code, start=1):
            cell.execution_count = number
            for output in cell.outputs:
                output.update({"execution_count": number} if "execution_count" in output else {})
                lighten(output.get("data", {}))
    return notebooks


def lighten(data: dict[str, Any]) -> None:
    """A large PNG (photographs, mostly) becomes a JPEG, in place."""
    png = base64.b64decode(data.get("image/png", ""))
    if len(png) > LARGEST_PNG:
        jpeg = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(jpeg, "JPEG", quality=85, subsampling=0, optimize=True)
        data["image/jpeg"] = base64.b64encode(jpeg.getvalue()).decode()
        del data["image/png"]


def main() -> None:
    known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    names = sys.argv[1:] or known
    for name in names:
        if name not in known:
            sys.exit(f"error: {plugins.unknown('notebook', name, known)}")
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        [notebook] = executed([path])  # a kernel of its own for each
        write_text(path, nbformat.writes(notebook) + "\n")
        print(f"{name}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
