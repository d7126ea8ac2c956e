"""What only a GPU can show of the Triton backend: repeatability, captured fits, long tensors, memory, stray access."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compare import assert_near, assert_same_gradients, make_problem, truth
from test_triton import DEVICE, on_device

import ua
from kernels.bilateral import reference
from kernels.bilateral import triton as backend

pytestmark = pytest.mark.gpu
CHECKOUT = Path(__file__).resolve().parents[2]
# The size that people use: a ViT's features of a 224 x 224 image, the released support.
REAL = {"grid": (16, 16), "size": (224, 224), "radius": 8, "border": "clamp", "sigma": (0.8, 1.5)}


def test_backward_repeats_to_the_bit() -> None:
    problem = on_device(make_problem(**REAL, channels=64))
    problem = replace(problem, signal=problem.signal.half())
    first = problem.gradients(backend, of_guide=True)
    for _ in range(99):
        for name, gradient in problem.gradients(backend, of_guide=True).items():
            assert torch.equal(gradient, first[name]), name


@pytest.mark.parametrize("channels", [3, 384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_real_size(dtype: torch.dtype, channels: int) -> None:
    problem = make_problem(**REAL, channels=channels)
    problem = replace(problem, signal=problem.signal.to(dtype))
    exact = replace(problem, signal=problem.signal.double())
    unit = torch.finfo(dtype).eps
    out = on_device(problem).render(backend).cpu()
    assert_near(out, truth(exact), largest=max(8 * unit, 1e-5), rms=max(0.5 * unit, 1e-6))


def test_gradients_of_the_real_size() -> None:
    problem = make_problem(**REAL, channels=40)
    found = {name: g.cpu() for name, g in on_device(problem).gradients(backend, of_guide=True).items()}
    expected = problem.to(torch.float64).gradients(reference, of_guide=True)
    assert_same_gradients(found, expected, largest=3e-5, rms=3e-6)


def test_tf32_only_when_asked() -> None:
    problem = make_problem(grid=(4, 4), size=(56, 56), channels=64)
    moved, exact = on_device(problem), truth(problem)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        assert_near(moved.render(backend).cpu(), exact, largest=1e-5, rms=1e-6)
        torch.backends.cuda.matmul.allow_tf32 = True
        error = (moved.render(backend).cpu() - exact).abs().max()
        assert 1e-5 < float(error) < 5e-3
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_the_next_image_replays_the_graph() -> None:
    images = [torch.rand(1, 3, 112, 96, generator=torch.Generator().manual_seed(seed)).to(DEVICE) for seed in range(3)]
    alone = []
    for image in images:
        alone.append(ua.fit(image, (8, 6), preset="released", backend="triton", callback=lambda *_: None))
    for image, fit in zip(images, alone, strict=True):
        again = ua.fit(image, (8, 6), preset="released", backend="triton")
        assert torch.equal(again.losses, fit.losses)
        assert all(torch.equal(a, b) for a, b in zip(again.gaussians, fit.gaussians, strict=True))


@pytest.mark.parametrize("grid", [(3, 3), (37, 37)])
def test_a_captured_fit_of_an_odd_number_of_cells(grid: tuple[int, int]) -> None:
    # Rows of losses must stay aligned: Triton compiles anew for other alignments, which a capture may not do.
    image = torch.rand(1, 3, 14 * grid[0], 14 * grid[1], generator=torch.Generator().manual_seed(0)).to(DEVICE)
    fit = ua.fit(image, grid, preset="released", backend="triton")
    watched = ua.fit(image, grid, preset="released", backend="triton", callback=lambda *_: None)
    assert torch.equal(fit.losses, watched.losses)


@pytest.mark.parametrize("parameterisation", ["anisotropic", "log_covariance", "no_range", "shared_range", "isotropic"])
def test_fits_agree_with_torch(parameterisation: str) -> None:
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12), (96, 112), mode="bicubic").clamp(0, 1).to(DEVICE)
    options = {"preset": "released", "steps": 10, "parameterisation": parameterisation}
    ours = ua.fit(image, (6, 8), backend="triton", **options)
    theirs = ua.fit(image, (6, 8), backend="torch", **options)
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=0.03, atol=0)


def test_offsets_beyond_32_bits() -> None:
    # 2048 x 2048 x 384 in half precision: 3.2 GB.
    image = torch.rand(1, 3, 2048, 2048, device=DEVICE)
    signal = torch.randn(1, 384, 128, 128, device=DEVICE, dtype=torch.float16)
    fit = ua.fit(image, (128, 128), preset="released", steps=0, backend="triton")
    out = fit.render(signal)
    few = fit.render(signal[:, -9:])
    torch.testing.assert_close(out[:, -9:], few, rtol=0, atol=2e-3)


def test_memory_is_input_and_output() -> None:
    from kernels.bilateral import _triton_fit

    image = torch.rand(1, 3, 1024, 1024, device=DEVICE)
    signal = torch.randn(1, 384, 64, 64, device=DEVICE, dtype=torch.float16)
    ua.upsample(image, signal, preset="released", backend="triton")  # compiles
    _triton_fit.steps_for.cache_clear()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() - image.nbytes - signal.nbytes
    out = ua.upsample(image, signal, preset="released", backend="triton")
    needed = image.nbytes + signal.nbytes + out.nbytes
    assert torch.cuda.max_memory_allocated() - before < 1.5 * needed


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    problem = make_problem(channels=9)
    moved = replace(
        problem,
        **{name: getattr(problem, name).to("cuda:1") for name in ("signal", "guide", "guide_lr")},
        factors=type(problem.factors)(*(lr_map.to("cuda:1") for lr_map in problem.factors)),
    )
    assert_near(moved.render(backend).cpu(), truth(problem), largest=1e-5, rms=1e-6)
    image = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    fits = [ua.fit(image.to(device), (2, 2), preset="released", backend="triton") for device in ("cuda:0", "cuda:1")]
    assert torch.equal(fits[0].losses.cpu(), fits[1].losses.cpu())


SANITIZED = """
import torch
from compare import make_problem
from test_triton import on_device
from kernels.bilateral import triton
for options in ({"channels": 9, "valid": 0.5, "radius_map": True, "border": "clamp"}, {"channels": 200}):
    on_device(make_problem(grid=(3, 4), size=(13, 23), **options)).gradients(triton, of_guide=True)
problem = on_device(make_problem(grid=(3, 4), size=(13, 23), reconstruct=True))
raw = torch.zeros(4, 1, 3, 4, device="cuda")
triton.fit_anisotropic(
    problem.signal, problem.guide, problem.guide_lr, raw, support=problem.support, cells_per_pixel=0.2, floor=1e-6,
    epsilon=1e-8, lr=0.1, lr_decay=1.0, steps=2, each=lambda *_: None,
)
triton.reconstruction_l1(problem.signal, problem.guide, problem.guide_lr, problem.factors, support=problem.support)
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("compute-sanitizer is not installed")
    run = subprocess.run(
        ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SANITIZED],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
