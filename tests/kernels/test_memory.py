"""Nothing of the size of pixels times candidates is ever stored: peak memory, measured in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

# The highest resident size since a moment is Linux's: clear_refs resets it.
MEASURE = """
import re
import torch
from compare import make_problem
from kernels.bilateral import {backend} as backend

def megabytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) / 1024

def work(problem):
    return {work}

torch.set_num_threads(2)
options = dict(radius=8, border="clamp", reconstruct={channels} == 3, channels={channels})
work(make_problem(grid=(4, 4), size=(32, 32), **options))  # imports and compiles
for grid, size in {cases}:
    problem = make_problem(grid=(grid, grid), size=(size, size), **options)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = megabytes("VmRSS")
    work(problem)
    print(megabytes("VmHWM") - before)
"""
RENDER, GRADIENTS = "problem.render(backend)", "problem.gradients(backend)"
FIT_STEP = "problem.loss_and_gradients(backend)"
CANDIDATES = 197

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is measured on Linux only"
)


def peaks(backend: str, work: str, *cases: tuple[int, int], channels: int = 3) -> list[float]:
    """Most memory in use at once, above what was before, in MB; for each (cells, pixels) of a side."""
    path = os.pathsep.join([str(CHECKOUT), str(Path(__file__).parent)])
    run = subprocess.run(
        [sys.executable, "-c", MEASURE.format(backend=backend, work=work, cases=cases, channels=channels)],
        # Large blocks go back to the system when they are freed, so what is measured is what is in use.
        env={**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return [float(line) for line in run.stdout.split()]


def full_matrix(pixels: int) -> float:
    """A float32 for every pixel and candidate, MB."""
    return pixels**2 * CANDIDATES * 4 / 2**20


@pytest.mark.parametrize("work", [GRADIENTS, FIT_STEP], ids=["render-and-gradients", "fit-step"])
def test_cpu_needs_the_image_and_a_tile(work: str) -> None:
    # Measured: 13 MB, of which the result, its gradient and the coefficients are 9.
    for found in peaks("cpu", work, (32, 512), (1, 512)):
        assert found < 20 < full_matrix(512) / 9


def test_torch_needs_the_image_and_a_band() -> None:
    # Measured: 30 MB; few large cells are cut into bands, too.
    for found in peaks("torch", GRADIENTS, (20, 320), (1, 320)):
        assert found < 40 < full_matrix(320) / 1.9


@pytest.mark.parametrize(("backend", "copies"), [("cpu", 1.1), ("torch", 4.2)], ids=["cpu", "torch"])
def test_many_channels_need_copies_of_the_result_alone(backend: str, copies: float) -> None:
    # The torch backend holds its bands, their concatenation, and the pixels in their places along one axis and both.
    result = 384 * 192 * 192 * 4 / 2**20
    for found in peaks(backend, RENDER, (16, 192), (2, 192), channels=384):
        assert found < copies * result
