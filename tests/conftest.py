"""What all tests share: real samples with ground truth, where they are at hand; Triton's interpreter without a GPU."""

import dataclasses
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Workers side by side (pytest -n) share the cores; read when PyTorch and Numba are imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parent.parent
# Read when a kernel is decorated, so it must be set before any of ours is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def spare_the_interpreter() -> None:
    """Leave out what Triton's interpreter does again and again to no effect, half of its time.

    It replaces the functions of Triton's language before each launch, and anew in every call within it, where they are
    replaced already; and it computes whether integers overflow, to throw that away unless it debugs. These are private
    matters of Triton: where they have other names it stays as slow as it is.
    """
    from triton.runtime import interpreter

    if not all(hasattr(interpreter, name) for name in ("_patch_lang", "_LangPatchScope", "interpreter_builder")):
        return
    patch, builder = interpreter._patch_lang, interpreter.interpreter_builder
    patched: set[int] = set()  # globals of the modules whose functions the launch under way has called

    def patch_once(function: Callable) -> Any:
        if id(function.__globals__) in patched:
            return interpreter._LangPatchScope()  # nothing to restore
        scope = patch(function)
        patched.add(id(function.__globals__))
        restore = scope.restore  # called for the kernel itself, when its launch is over

        def restore_and_forget() -> None:
            patched.clear()
            restore()

        scope.restore = restore_and_forget
        return scope

    interpreter._patch_lang = patch_once
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
    spare_the_interpreter()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real samples: UA_DATA, else ../shared/data beside the checkout; skips without."""
    folder = Path(os.environ.get("UA_DATA", CHECKOUT.parent / "shared" / "data"))
    if not (folder / "MANIFEST.json").is_file():
        pytest.skip(f"real samples are not at hand (UA_DATA or {folder})")
    return folder


# Few long tests each: begun last, they would keep one worker busy while the other has nothing left to do.
LONG = (
    "test_ahead_of_time.py",
    "test_triton.py",
    "test_benchmark.py",
    "test_notebooks.py",
    "test_quality.py",
    "test_memory.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests come first; tests marked `gpu` are skipped where there is none."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
