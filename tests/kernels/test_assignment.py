"""The assignment: its backends against the reference, finite differences, and what the definition promises."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pytest
import torch
from compare import assert_near, assert_same_gradients, averages
from diffusion_problem import CASES as DIFFUSION_CASES
from torch import Tensor

from kernels.assignment import LEAST_SCORE, SHARPNESS, cpu, reference
from kernels.assignment import torch as portable
from kernels.geometry import area_weights

CASES: dict[str, dict] = {
    **{name: options for name, options in DIFFUSION_CASES.items() if set(options) <= {"grid", "size"}},
    "one-class": {"classes": 1, "grid": (2, 3), "size": (4, 9)},
    "17-classes": {"classes": 17, "grid": (2, 2), "size": (4, 6)},
    "batch-and-holes": {"batch": 2, "valid": 0.5, "known": 0.8},
    "batch-and-holes-non-integer": {"batch": 2, "grid": (2, 3), "size": (5, 8), "valid": 0.5, "known": 0.8},
    "nothing-valid": {"valid": 0.0},
    "no-balance": {"balances": 0},
    "one-balance": {"balances": 1},
    "ten-balances": {"balances": 10},
    "big": {"grid": (6, 7), "size": (45, 67), "classes": 20, "batch": 2, "valid": 0.7, "known": 0.9},
}
each_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)
each_backend = pytest.mark.parametrize("backend", [reference, portable, cpu], ids=["reference", "torch", "cpu"])
each_float32_backend = pytest.mark.parametrize("backend", [portable, cpu], ids=["torch", "cpu"])


@dataclass(frozen=True)
class Problem:
    """Arguments of `assign`. Made in float32, so that a float64 copy holds the very same numbers."""

    scores: Tensor
    shares: Tensor
    valid: Tensor | None
    known: Tensor | None
    balances: int

    def to(self, where: torch.dtype | str) -> Problem:
        """Scores and shares in another precision, or on another device."""
        return replace(self, scores=self.scores.to(where), shares=self.shares.to(where))

    def assign(self, backend: ModuleType) -> Tensor:
        """The result, 0 at unknown pixels."""
        out = backend.assign(self.scores, self.shares, balances=self.balances, valid=self.valid, known=self.known)
        return out if self.known is None else out.masked_fill(~self.known[:, None], 0)

    def gradients(self, backend: ModuleType) -> dict[str, Tensor]:
        """Of a sum of the result with fixed random coefficients."""
        leaves = {name: getattr(self, name).detach().clone().requires_grad_() for name in ("scores", "shares")}
        out = replace(self, **leaves).assign(backend)
        # Multiples of 1/8, which half precision holds exactly.
        coefficients = torch.randn(out.shape, generator=torch.Generator().manual_seed(99))
        coefficients = ((8 * coefficients).round() / 8).to(out)
        total, options = (coefficients * out).sum(), {"allow_unused": True, "materialize_grads": True}
        return dict(zip(leaves, torch.autograd.grad(total, tuple(leaves.values()), **options), strict=True))


def make_problem(
    *,
    grid: tuple[int, int] = (2, 3),
    size: tuple[int, int] = (8, 15),
    batch: int = 1,
    classes: int = 4,
    valid: float | None = None,
    known: float | None = None,
    balances: int = 3,
    seed: int = 0,
) -> Problem:
    """Random scores; a third of the classes absent from every cell, whose shares sum to 1."""
    random = torch.Generator().manual_seed(seed)
    shares = torch.rand(batch, classes, *grid, generator=random) + 0.05
    absent = torch.rand(shares.shape, generator=random) < 1 / 3
    absent[:, 0] = False
    shares = shares.masked_fill(absent, 0)
    scores = (3 * torch.randn(batch, classes, *size, generator=random)).softmax(1)

    def mask(share: float | None, *shape: int) -> Tensor | None:
        return None if share is None else torch.rand(batch, *shape, generator=random) < share

    return Problem(scores, shares / shares.sum(1, keepdim=True), mask(valid, *grid), mask(known, *size), balances)


def truth(problem: Problem) -> Tensor:
    """The reference's result in float64 of the same numbers."""
    return problem.to(torch.float64).assign(reference)


# --- agreement


@each_case
def test_torch_is_the_reference_in_float64(options: dict) -> None:
    problem = make_problem(**options).to(torch.float64)
    assert_near(problem.assign(portable), problem.assign(reference), largest=1e-13, rms=1e-14)
    assert_same_gradients(problem.gradients(portable), problem.gradients(reference), largest=1e-12, rms=1e-12)


@each_float32_backend
@each_case
def test_float32(backend: ModuleType, options: dict) -> None:
    problem = make_problem(**options)
    assert_near(problem.assign(backend), truth(problem), largest=1.4e-6, rms=2e-7)  # measured: 9e-7, RMS 6e-8
    found, expected = problem.gradients(backend), problem.to(torch.float64).gradients(reference)
    if problem.scores.shape[-2:] == problem.shares.shape[-2:]:  # a pixel that is a cell is what the cell is
        assert expected["scores"].abs().max() < 1e-12 and found["scores"].abs().max() < 5e-5
    else:
        assert_same_gradients(found, expected, largest=2e-5, rms=4e-6)  # measured: 7e-6, RMS 1.3e-6


@each_float32_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(backend: ModuleType, dtype: torch.dtype) -> None:
    problem = make_problem(batch=2, valid=0.5).to(dtype)
    out, exact, unit = problem.assign(backend), truth(problem), torch.finfo(dtype).eps
    assert out.dtype == dtype
    assert ((out - exact).abs() <= 0.51 * unit * exact.abs().clamp(min=1e-2)).all()
    gradients, expected = problem.gradients(backend), problem.to(torch.float64).gradients(reference)
    assert {gradient.dtype for gradient in gradients.values()} == {dtype}
    assert_same_gradients(gradients, expected, largest=unit, rms=unit / 2)


@pytest.mark.parametrize("name", ["plain", "non-integer", "batch-and-holes"])
def test_gradcheck_of_the_reference(name: str) -> None:
    problem = make_problem(**CASES[name]).to(torch.float64)
    problem = replace(problem, scores=0.3 + 0.4 * problem.scores, shares=problem.shares + 0.1)  # away from the bounds

    def function(scores: Tensor, shares: Tensor) -> Tensor:
        return replace(problem, scores=scores, shares=shares).assign(reference)

    leaves = (problem.scores.requires_grad_(), problem.shares.requires_grad_())
    assert torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=1e-7, rtol=1e-5)


# --- what the definition promises


@each_backend
def test_it_is_sinkhorn_in_every_cell_of_whole_pixels(backend: ModuleType) -> None:
    problem = make_problem()
    out = torch.empty_like(problem.scores)
    for i in range(2):
        for j in range(3):
            cell = (0, slice(None), slice(4 * i, 4 * i + 4), slice(5 * j, 5 * j + 5))
            share = problem.shares[0, :, i, j]
            plan = problem.scores[cell].flatten(1).clamp(LEAST_SCORE, 1) ** SHARPNESS * (share > 0)[:, None]
            for _ in range(problem.balances):
                plan = plan / plan.sum(0)  # each pixel gives one pixel ...
                plan = plan * (share / plan.mean(1).clamp(min=1e-9))[:, None]  # ... and each class gets its share
            out[cell] = (plan / plan.sum(0)).view(-1, 4, 5)
    assert_near(problem.assign(backend), out, largest=2e-6, rms=3e-7)


@each_backend
@each_case
def test_pixels_are_whole_and_have_no_absent_class(backend: ModuleType, options: dict) -> None:
    problem = make_problem(**options)
    out = problem.assign(backend)
    known = torch.ones_like(out[:, 0]) if problem.known is None else problem.known.float()
    assert (out.sum(1) - known).abs().max() < 3e-6 and out.min() >= 0
    rows, cols = (area_weights(*pair).float() for pair in zip(out.shape[-2:], problem.shares.shape[-2:], strict=True))
    free = torch.ones_like(problem.shares[:, :1]) if problem.valid is None else (~problem.valid[:, None]).float()
    there = (problem.shares > 0).float() + (free if problem.valid is not None else 0)
    assert not out[(rows.mT @ there @ cols) == 0].any()


@each_backend
def test_with_many_balances_cells_keep_their_shares(backend: ModuleType) -> None:
    problem = make_problem(grid=(3, 4), size=(27, 36))
    few, many = (replace(problem, balances=count) for count in (3, 200))
    lacking = [(averages(one.assign(backend), (3, 4)) - one.shares).abs().max() for one in (few, many)]
    assert lacking[1] < 1e-5 < lacking[0]


@each_backend
def test_cells_that_are_not_valid_are_not_read(backend: ModuleType) -> None:
    problem = make_problem(size=(5, 8), valid=0.5)
    assert problem.valid is not None and not problem.valid.all()
    for other in (problem.shares.roll(1, 1), torch.full_like(problem.shares, torch.nan)):
        changed = replace(problem, shares=torch.where(problem.valid[:, None], problem.shares, other))
        assert torch.equal(changed.assign(backend), problem.assign(backend))
        assert changed.gradients(backend)["scores"].isfinite().all()
    assert not torch.equal(replace(problem, valid=None).assign(backend), problem.assign(backend))


@each_backend
def test_cells_that_ask_for_nothing_have_the_classes_of_their_image_alone(backend: ModuleType) -> None:
    problem = make_problem(size=(5, 8), valid=0.5)
    shares = problem.shares.clone()
    shares[:, 2] = 0
    alone = replace(problem, shares=shares / shares.sum(1, keepdim=True))
    assert not alone.assign(backend)[:, 2].any()


@each_float32_backend
def test_any_strides(backend: ModuleType) -> None:
    problem = make_problem(batch=2, size=(5, 8), valid=0.6, known=0.8)
    assert problem.valid is not None and problem.known is not None

    def strided(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor], -1)[..., 0].movedim(-1, 0).contiguous().movedim(0, -1)

    other = Problem(*map(strided, (problem.scores, problem.shares, problem.valid, problem.known)), problem.balances)
    assert not other.scores.is_contiguous()
    assert_near(other.assign(backend), problem.assign(backend), largest=5e-7, rms=1e-7)


@each_backend
def test_unknown_pixels_are_not_read(backend: ModuleType) -> None:
    problem = make_problem(known=0.7)
    assert problem.known is not None
    changed = torch.where(problem.known[:, None], problem.scores, 0.5)
    assert torch.equal(replace(problem, scores=changed).assign(backend), problem.assign(backend))


@each_backend
def test_images_are_independent(backend: ModuleType) -> None:
    problem = make_problem(batch=3, size=(5, 8), valid=0.6, known=0.8)
    assert problem.valid is not None and problem.known is not None
    one = Problem(problem.scores[1:2], problem.shares[1:2], problem.valid[1:2], problem.known[1:2], problem.balances)
    assert_near(problem.assign(backend)[1:2], one.assign(backend), largest=5e-7, rms=1e-7)


@each_backend
def test_gradients_stay_bounded_where_the_render_is_sure(backend: ModuleType) -> None:
    problem = make_problem()
    sure = torch.nn.functional.one_hot(problem.scores.argmax(1), 4).movedim(-1, 1).float()
    gradients = replace(problem, scores=sure).gradients(backend)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["scores"].abs().max() < 3 / LEAST_SCORE


# --- the cpu backend


def test_cpu_does_not_depend_on_the_number_of_threads() -> None:
    problem = make_problem(**CASES["big"])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(problem.assign(cpu))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["plain", "non-integer", "batch-and-holes"])
def test_cpu_writes_all_that_it_returns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.np, "empty_like", lambda like: np.full_like(like, np.nan))
    monkeypatch.setattr(cpu, "empty", lambda *shape: np.full(shape, np.nan, np.float32))
    assert not make_problem(**CASES[name]).assign(cpu).isnan().any()


def test_only_the_arguments_are_kept_between_the_passes() -> None:
    problem = make_problem(grid=(4, 4), size=(64, 64), classes=8)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for backend in (portable, cpu):
        scores = problem.scores.clone().requires_grad_()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = backend.assign(scores, problem.shares, balances=3)
        assert sum(kept.values()) <= 1.1 * (out.nbytes + problem.shares.nbytes)


def test_inputs_are_left_alone() -> None:
    for backend in (reference, portable, cpu):
        problem, same = make_problem(), make_problem()
        problem.assign(backend)
        problem.gradients(backend)
        assert torch.equal(problem.scores, same.scores) and torch.equal(problem.shares, same.shares)


def test_what_cpu_refuses() -> None:
    problem = make_problem()
    assert cpu.refuses(problem.shares, problem.scores) is None
    exact, elsewhere = problem.to(torch.float64), problem.to("meta")
    assert "float64" in str(cpu.refuses(exact.shares, exact.scores))
    assert "CPU" in str(cpu.refuses(elsewhere.shares, elsewhere.scores))
