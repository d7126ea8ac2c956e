"""Leave-one-out steps: the definition against loops, its gradient and Adam; every backend against the definition."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import leave_one_out
from kernels.leave_one_out import cpu, reference
from kernels.leave_one_out import torch as portable
from kernels.leave_one_out import triton as fused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not here")


@dataclass(frozen=True)
class Problem:
    """Arguments of `fit`, made in float32, so that a float64 copy holds the very same numbers."""

    values: Tensor
    colours: Tensor
    known: Tensor
    raw: Tensor
    scale: tuple[float, float] = (8.0, 4.0)
    radius: int = 2

    def to(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Problem:
        tensors = {name: getattr(self, name).to(device, dtype) for name in ("values", "colours", "raw")}
        return replace(self, known=self.known.to(device), **tensors)

    def fit(self, backend: Any, steps: int) -> Tensor:
        return backend.fit(
            self.values, self.colours, self.known, self.raw, scale=self.scale, radius=self.radius, steps=steps
        )

    def objective(self, raw: Tensor) -> Tensor:
        return reference.objective(raw, self.raw, self.values, self.colours, self.known, self.scale, self.radius)


def make_problem(
    rows: int = 6,
    cols: int = 7,
    channels: int = 5,
    batch: int = 2,
    guide: int = 3,
    holes: float = 0.3,
    log_range: float = -1.5,
    **options: Any,
) -> Problem:
    """With holes, and in the second image a range that is infinite everywhere, in the third in one cell."""
    random = torch.Generator().manual_seed(rows * cols + channels)
    known = torch.rand(batch, rows, cols, generator=random) >= holes
    values = torch.randn(batch, channels, rows, cols, generator=random).masked_fill(~known[:, None], 0)
    raw = torch.rand(4, batch, rows, cols, generator=random) + torch.tensor([1.5, 1, -0.5, log_range]).view(4, 1, 1, 1)
    raw[3, 1:2] = math.inf
    raw[3, 2:, 0, 0] = math.inf
    return Problem(values, torch.rand(batch, guide, rows, cols, generator=random), known, raw, **options)


CASES: dict[str, dict[str, Any]] = {
    "batch-and-holes": {"batch": 3, "rows": 3},
    "radius-1": {"radius": 1, "rows": 3},
    "radius-3": {"radius": 3, "holes": 0.0, "rows": 4, "batch": 2},
    "one-channel-grey": {"channels": 1, "guide": 1, "batch": 1},
    "narrow-range": {"log_range": -7.0, "rows": 4, "batch": 1},
    "one-row": {"rows": 1, "cols": 9, "batch": 1},
    "one-cell": {"rows": 1, "cols": 1, "holes": 0.0, "batch": 1},
    "alone": {"holes": 0.95, "batch": 1},
}
# Longer than a job of the cpu backend, and no whole number of them or of Triton's programs.
LARGE = {"rows": 29, "cols": 61, "batch": 1, "channels": 3, "radius": 3}


# Largest and RMS error in float32 after up to three steps, and after ten: Adam divides by the size of a gradient, so
# that rounding grows. Measured, of `torch` and `cpu`: 4.2e-5 and 1.6e-6 (LARGE, three steps), 1.6e-4 and 2.8e-5 (one
# row of cells, ten), 2e-3 and 4.6e-5 (LARGE, ten).
FEW, TEN, TEN_LARGE = (1e-4, 5e-6), (6e-4, 8e-5), (8e-3, 1.5e-4)


def assert_same(found: Tensor, expected: Tensor, largest: float, rms: float) -> None:
    found, expected = found.double().cpu(), expected.cpu()
    assert torch.equal(found.isinf(), expected.isinf())
    error = (found - expected)[expected.isfinite()]
    assert error.abs().max() <= largest and error.square().mean().sqrt() <= rms


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("steps", [0, 1, 2, 10])
def test_torch_makes_the_same_steps(options: dict, steps: int) -> None:
    exact = make_problem(**options).to(dtype=torch.float64)
    assert_same(exact.fit(portable, steps), exact.fit(reference, steps), largest=1e-11, rms=1e-12)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("backend", [portable, cpu], ids=["torch", "cpu"])
def test_in_float32(backend: Any, options: dict) -> None:
    problem = make_problem(**options)
    for steps, bounds in ((0, (0, 0)), (1, FEW), (3, FEW), (10, TEN)):
        expected = problem.to(dtype=torch.float64).fit(reference, steps)
        assert_same(problem.fit(backend, steps), expected, *bounds)


@pytest.mark.parametrize("backend", [cpu, pytest.param(fused, marks=pytest.mark.gpu)], ids=["cpu", "triton"])
def test_more_cells_than_a_job_has(backend: Any) -> None:
    problem = make_problem(**LARGE)
    for steps, bounds in ((1, FEW), (3, FEW), (10, TEN_LARGE)):
        expected = problem.to(dtype=torch.float64).fit(portable, steps)
        assert_same(problem.to(DEVICE if backend is fused else "cpu").fit(backend, steps), expected, *bounds)


@NEEDS_TRITON
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_triton_makes_the_same_steps(options: dict) -> None:
    problem = make_problem(**options)
    for steps, bounds in ((2, FEW), *(((0, (0, 0)), (10, TEN)) if DEVICE == "cuda" else ())):  # an interpreter is slow
        expected = problem.to(dtype=torch.float64).fit(reference, steps)
        assert_same(problem.to(DEVICE).fit(fused, steps), expected, *bounds)


@pytest.mark.gpu
def test_triton_repeats_to_the_bit() -> None:
    problem = make_problem(**LARGE | {"batch": 3}).to(DEVICE)
    expected = problem.fit(fused, 10)
    assert all(torch.equal(problem.fit(fused, 10), expected) for _ in range(20))


def test_cpu_does_not_depend_on_the_threads() -> None:
    problem, threads = make_problem(**LARGE), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(problem.fit(cpu, 5))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("backend", [reference, portable, cpu, pytest.param(fused, marks=NEEDS_TRITON)])
def test_arguments_stay_and_strides_do_not_matter(backend: Any) -> None:
    problem, same = (make_problem(rows=3, cols=4).to(DEVICE if backend is fused else "cpu") for _ in range(2))
    names = ("values", "colours", "raw", "known")
    turned = replace(problem, **{name: getattr(problem, name).mT.contiguous().mT for name in names})
    assert torch.equal(problem.fit(backend, 1), turned.fit(backend, 1))
    assert all(torch.equal(getattr(problem, name), getattr(same, name)) for name in names)


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_the_gradient_by_hand_is_that_of_the_objective(radius: int) -> None:
    exact = make_problem(radius=radius, batch=3).to(dtype=torch.float64)
    random = torch.Generator().manual_seed(radius)
    raw = (exact.raw + 0.2 * torch.randn(exact.raw.shape, generator=random, dtype=torch.float64)).requires_grad_()
    (expected,) = torch.autograd.grad(exact.objective(raw), raw)
    problem = portable.problem_of(exact.values, exact.colours, exact.known, exact.scale, radius)
    found = portable.gradient(raw.detach().flatten(2), exact.raw.flatten(2), problem).view_as(raw)
    assert expected[:3].abs().amax((1, 2, 3)).min() > 1e-3 and expected[3, 0].abs().max() > 1e-3
    torch.testing.assert_close(found, expected.nan_to_num(0), rtol=1e-9, atol=1e-12)


def test_the_objective_by_loops() -> None:
    exact = make_problem(rows=3, cols=4, batch=1, channels=2).to(dtype=torch.float64)
    raw = exact.raw + 0.1
    total = 0.0
    for i in range(3):
        for j in range(4):
            total += leave_one_out.PRIOR * 0.1**2  # of the mean square of three changes of .1
            predicted = left_out(exact, raw, i, j) if exact.known[0, i, j] else None
            if predicted is not None:
                error = predicted - exact.values[0, :, i, j]
                total += float((error.square() + leave_one_out.ROUNDING).sqrt().mean())
    assert float(exact.objective(raw)) == pytest.approx(total, rel=1e-12)


def left_out(problem: Problem, raw: Tensor, i: int, j: int) -> Tensor | None:
    """What the others say of one cell, (C,), one after the other; None without any."""
    total, mass = torch.zeros(problem.values.shape[1], dtype=torch.float64), 0.0
    for k in range(problem.known.shape[1]):
        for m in range(problem.known.shape[2]):
            far = (i - k) ** 2 + (j - m) ** 2
            if far == 0 or far > problem.radius**2 or not problem.known[0, k, m]:
                continue
            dy, dx = (i - k) * problem.scale[0], (j - m) * problem.scale[1]
            log_x, log_y, theta, log_r = raw[:, 0, k, m].tolist()
            along = dx * math.cos(theta) + dy * math.sin(theta)
            across = -dx * math.sin(theta) + dy * math.cos(theta)
            apart = float((problem.colours[0, :, i, j] - problem.colours[0, :, k, m]).square().sum())
            score = (along / math.exp(log_x)) ** 2 + (across / math.exp(log_y)) ** 2 + apart / math.exp(log_r) ** 2
            weight = math.exp(-score / 2)
            total, mass = total + weight * problem.values[0, :, k, m], mass + weight
    return total / mass if mass > 0 else None


def test_the_steps_are_those_of_adam() -> None:
    exact = make_problem(batch=1).to(dtype=torch.float64)
    leaf = exact.raw.clone().requires_grad_()
    options = {"lr": leave_one_out.RATE, "betas": (leave_one_out.BETA_1, leave_one_out.BETA_2)}
    optimiser = torch.optim.Adam([leaf], eps=leave_one_out.EPSILON, **options)
    for steps in range(1, 6):
        optimiser.zero_grad()
        exact.objective(leaf).backward()
        optimiser.step()
        torch.testing.assert_close(exact.fit(reference, steps), leaf.detach(), rtol=1e-9, atol=1e-10)


def test_steps_lessen_the_objective() -> None:
    exact = make_problem(rows=12, cols=12, radius=3).to(dtype=torch.float64)
    losses = [float(exact.objective(exact.fit(portable, steps))) for steps in (0, 3, 10)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.97 * losses[0]


def test_in_inference_mode() -> None:
    problem = make_problem()
    for backend in (reference, portable, cpu):
        expected = problem.fit(backend, 2)
        with torch.inference_mode():
            inside = replace(problem, **{name: getattr(problem, name) * 1 for name in ("values", "colours", "raw")})
            assert torch.equal(inside.fit(backend, 2), expected)


def test_what_backends_refuse() -> None:
    double = make_problem().values.double()
    assert "float64" in str(cpu.refuses(double, double)) and reference.refuses(double, double) is None
    assert portable.refuses(double, double) is None
    many = torch.empty(1).expand(fused.MOST_IMAGES + 1, 1, 1, 1)
    assert "images" in str(fused.refuses(many, many))
