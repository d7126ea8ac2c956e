"""`python -m notebooks.execute [NAME ...]`: runs the notebooks (all, or those named) and writes their outputs in place.

Needs the extra "notebooks". What is written names no person, path, time or version of Python.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

from ua.tracking import write_text

FOLDER = Path(__file__).resolve().parent
LARGEST_PNG = 100_000  # bytes
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs; the file stays as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message shows where.
    """
    notebook = nbformat.read(path, as_version=4)
    # Pictures that a page shows well and a repository keeps lightly.
    figures = (
        "--InlineBackend.print_figure_kwargs={'dpi': 110, 'bbox_inches': 'tight', 'pil_kwargs': {'optimize': True}}"
    )
    options = {
        "kernel_name": "python3",
        "record_timing": False,
        "timeout": 300,
        "extra_arguments": [figures],
    }
    with tempfile.TemporaryDirectory() as folder:  # what a notebook writes does not stay
        NotebookClient(notebook, resources={"metadata": {"path": folder}}, **options).execute()
    notebook.metadata = nbformat.from_dict(KERNEL)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            lighten(output.get("data", {}))
    return notebook


def lighten(data: dict[str, Any]) -> None:
    """A large PNG (photographs, mostly) becomes a JPEG, in place."""
    png = base64.b64decode(data.get("image/png", ""))
    if len(png) > LARGEST_PNG:
        jpeg = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(jpeg, "JPEG", quality=85, subsampling=0, optimize=True)
        data["image/jpeg"] = base64.b64encode(jpeg.getvalue()).decode()
        del data["image/png"]


def main() -> None:
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        path = FOLDER / f"{name}.ipynb"
        write_text(path, nbformat.writes(executed(path)) + "\n")
        print(f"{name}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
