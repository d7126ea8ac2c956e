"""The diffusion: its backends against the reference, finite differences, and what the definition promises."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from compare import assert_near, assert_same_gradients, averages
from diffusion_problem import CASES, Problem, make_problem, truth

from kernels.diffusion import cpu, reference
from kernels.diffusion import torch as portable

ALL = ("start", "signal", "across", "down")
each_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)
each_backend = pytest.mark.parametrize("backend", [reference, portable, cpu], ids=["reference", "torch", "cpu"])
each_float32_backend = pytest.mark.parametrize("backend", [portable, cpu], ids=["torch", "cpu"])
TINY = {"grid": (2, 2), "size": (3, 4), "channels": 1}
BIG = {"grid": (6, 4), "size": (50, 38), "channels": 20, "batch": 2, "valid": 0.7, "steps": 12}


# --- agreement


@each_case
def test_torch_is_the_reference_in_float64(options: dict) -> None:
    problem = make_problem(**options).to(torch.float64)
    assert_near(problem.diffuse(portable), problem.diffuse(reference), largest=1e-12, rms=1e-12)
    found, expected = problem.gradients(portable, ALL), problem.gradients(reference, ALL)
    assert_same_gradients(found, expected, largest=1e-12, rms=1e-12)


@each_float32_backend
@pytest.mark.parametrize("options", [*CASES.values(), BIG], ids=[*CASES, "big"])
def test_float32(backend: ModuleType, options: dict) -> None:
    problem = make_problem(**options)
    # Measured, of values up to 5: 4.2e-6, RMS 2.3e-7; gradients: 1.5e-6, RMS 2.8e-7.
    assert_near(problem.diffuse(backend), truth(problem), largest=1.2e-5, rms=7e-7)
    names = ALL if backend is portable else ALL[:2]
    expected = problem.to(torch.float64).gradients(reference, names)
    assert_same_gradients(problem.gradients(backend, names), expected, largest=5e-6, rms=9e-7)


@each_float32_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(backend: ModuleType, dtype: torch.dtype) -> None:
    problem = make_problem(batch=2, valid=0.5)
    problem = replace(problem, start=problem.start.to(dtype), signal=problem.signal.to(dtype))
    out, unit = problem.diffuse(backend), torch.finfo(dtype).eps
    assert out.dtype == dtype
    exact = truth(problem)
    assert ((out - exact).abs() <= 0.51 * unit * exact.abs().clamp(min=1e-2)).all()
    gradients = problem.gradients(backend)
    expected = problem.to(torch.float64).gradients(reference)
    assert {gradient.dtype for gradient in gradients.values()} == {dtype}
    assert_same_gradients(gradients, expected, largest=unit, rms=unit / 4)


@pytest.mark.parametrize("name", ["plain", "batch-and-holes", "one-step"])
def test_gradcheck_of_the_reference(name: str) -> None:
    problem = make_problem(**CASES[name] | TINY).to(torch.float64)
    leaves = tuple(getattr(problem, argument).requires_grad_() for argument in ALL)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return replace(problem, **dict(zip(ALL, tensors, strict=True))).diffuse(reference)

    assert torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=1e-7, rtol=1e-5)


# --- what the definition promises


@each_backend
@each_case
def test_a_constant_stays(backend: ModuleType, options: dict) -> None:
    problem = make_problem(**options)
    constant = replace(problem, start=torch.full_like(problem.start, 3), signal=torch.full_like(problem.signal, 3))
    assert (constant.diffuse(backend) - 3).abs().max() < 3e-6  # measured: 7.2e-7


@each_backend
@pytest.mark.parametrize("grid", [(2, 3), (4, 12), (1, 1), (4, 2)], ids=str)
def test_full_share_holds_the_averages(backend: ModuleType, grid: tuple[int, int]) -> None:
    problem = make_problem(grid=grid, share=1.0, rate=0.2)
    assert_near(averages(problem.diffuse(backend), grid), problem.signal, largest=2e-6, rms=1e-6)
    exact = problem.to(torch.float64)
    assert_near(averages(exact.diffuse(reference), grid), exact.signal, largest=1e-12, rms=1e-12)


@each_backend
def test_no_step_returns_the_start(backend: ModuleType) -> None:
    problem = make_problem(steps=0)
    out = problem.diffuse(backend)
    assert torch.equal(out, problem.start)
    gradients = problem.gradients(backend)
    assert not gradients["signal"].any() and gradients["start"].any()


@each_backend
def test_without_conductance_only_the_residual_is_added(backend: ModuleType) -> None:
    problem = make_problem(share=1.0)
    dead = replace(problem, across=torch.zeros_like(problem.across), down=torch.zeros_like(problem.down))
    residual = dead.signal - averages(dead.start, (2, 3))
    expected = dead.start + residual.repeat_interleave(2, 2).repeat_interleave(4, 3)
    for steps in (1, 4):
        assert_near(replace(dead, steps=steps).diffuse(backend), expected, largest=3e-6, rms=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_grows(seed: int) -> None:
    """In the 2-norm, at the largest rate, whatever is given back: the steps as a matrix, of a start with no signal."""
    grid, size = ((2, 3), (4, 6)) if seed % 2 else ((2, 2), (3, 5))
    share = float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
    problem = make_problem(
        grid=grid, size=size, channels=math.prod(size), rate=0.25, share=share, factors=True, seed=seed
    )
    ones = torch.ones_like(problem.across[:1]), torch.ones_like(problem.down[:1])
    across, down = ones if seed < 2 else (problem.across, problem.down)
    each = torch.eye(math.prod(size)).view(1, -1, *size)
    problem = replace(problem, start=each, signal=torch.zeros_like(problem.signal), across=across, down=down)
    for steps in (1, 3, 14, 150):
        out = replace(problem, steps=steps).to(torch.float64).diffuse(reference)
        assert torch.linalg.matrix_norm(out[0].flatten(1), ord=2) < 1 + 1e-9


def test_strides_do_not_matter_to_cpu() -> None:
    problem = make_problem(grid=(2, 3), size=(4, 9))
    turned = replace(problem, **{name: getattr(problem, name).mT.contiguous().mT for name in ALL})
    assert torch.equal(turned.diffuse(cpu), problem.diffuse(cpu))
    options = {name: getattr(problem, name) for name in ("steps", "rate", "share")}
    one = problem.start[:, :1].expand(-1, 3, -1, -1)  # three channels in the memory of one
    expected = replace(problem, start=one.clone()).diffuse(cpu)
    assert torch.equal(
        cpu.diffuse(one, problem.signal, problem.across, problem.down, **options, overwrite=True), expected
    )


@each_backend
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_cycle_is_a_box_filter(backend: ModuleType, steps: int) -> None:
    """In a row of pixels that conducts everywhere, at the largest rate that is stable there (Hafner et al. 2016)."""
    problem = make_problem(grid=(1, 3), size=(1, 21), steps=steps, rate=0.5, share=0.0)
    impulse = torch.zeros_like(problem.start)
    impulse[..., 10] = 1
    open_row = replace(problem, start=impulse, across=torch.ones_like(problem.across))
    expected = torch.zeros_like(impulse)
    expected[..., 10 - steps : 11 + steps] = 1 / (2 * steps + 1)
    assert_near(open_row.diffuse(backend), expected, largest=3e-7, rms=1e-7)


@each_backend
def test_cells_that_ask_for_nothing_are_not_read(backend: ModuleType) -> None:
    problem = make_problem(grid=(2, 3), size=(5, 8), valid=0.5, steps=3)
    assert problem.valid is not None and not problem.valid.all()
    changed = torch.where(problem.valid[:, None], problem.signal, 1e3)
    assert torch.equal(replace(problem, signal=changed).diffuse(backend), problem.diffuse(backend))


@each_backend
def test_channels_and_images_are_independent(backend: ModuleType) -> None:
    problem = make_problem(batch=2, channels=9, valid=0.5)
    assert problem.valid is not None
    one = replace(
        problem,
        start=problem.start[1:, 4:5],
        signal=problem.signal[1:, 4:5],
        across=problem.across[1:],
        down=problem.down[1:],
        valid=problem.valid[1:],
    )
    assert_near(problem.diffuse(backend)[1:, 4:5], one.diffuse(backend), largest=1e-6, rms=3e-7)


# --- the cpu backend


def test_cpu_does_not_depend_on_the_number_of_threads() -> None:
    problem = make_problem(**BIG)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append((problem.diffuse(cpu), problem.gradients(cpu)))
    finally:
        torch.set_num_threads(before)
    (one, one_gradients), (many, many_gradients) = results
    assert torch.equal(one, many)
    assert all(torch.equal(one_gradients[name], many_gradients[name]) for name in one_gradients)


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 6])
def test_cpu_overwrites_its_start_where_it_may(steps: int) -> None:
    problem = make_problem(batch=2, channels=9, grid=(2, 3), size=(5, 8), steps=steps)
    expected = problem.diffuse(cpu)

    def overwriting(start: torch.Tensor) -> torch.Tensor:
        options = {name: getattr(problem, name) for name in ("steps", "rate", "share")}
        return cpu.diffuse(start, problem.signal, problem.across, problem.down, **options, overwrite=True)

    given = problem.start.clone()
    result = overwriting(given)
    assert torch.equal(result, expected) and result.data_ptr() == given.data_ptr()
    given = problem.start.clone().requires_grad_()
    assert torch.equal(overwriting(given), expected) and torch.equal(given, problem.start)
    half = problem.start.half()
    overwriting(half)
    assert torch.equal(half, problem.start.half())


@pytest.mark.parametrize("name", ["plain", "non-integer", "batch-and-holes"])
def test_cpu_writes_all_that_it_returns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(**CASES[name])

    def poisoned(like: np.ndarray) -> np.ndarray:
        return np.full_like(like, np.nan)

    monkeypatch.setattr(cpu.np, "empty_like", poisoned)
    monkeypatch.setattr(cpu.np, "empty", lambda shape, dtype: np.full(shape, np.nan, dtype))
    assert not problem.diffuse(cpu).isnan().any()
    assert not any(gradient.isnan().any() for gradient in problem.gradients(cpu).values())


def test_inputs_are_left_alone() -> None:
    for backend in (reference, portable, cpu):
        problem, same = make_problem(), make_problem()
        problem.diffuse(backend)
        problem.gradients(backend)
        assert all(torch.equal(getattr(problem, name), getattr(same, name)) for name in ALL)


def refused(problem: Problem) -> str:
    return cpu.refuses(problem.signal, problem.across) or ""


def test_what_cpu_refuses() -> None:
    problem = make_problem()
    assert refused(problem) == ""
    assert "float64" in refused(problem.to(torch.float64))
    assert "gradient" in refused(replace(problem, across=problem.across.clone().requires_grad_()))
    assert "CPU" in refused(problem.to("meta"))
