"""The Triton diffusion against the reference in float64, on a GPU or under Triton's interpreter.

The interpreter takes some 50 ms for a row of pixels, so problems are as small as can be.
"""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import replace

import pytest
import torch
from compare import assert_near, assert_same_gradients
from diffusion_problem import CASES, Problem, make_problem, truth
from torch import Tensor

from kernels.diffusion import reference
from kernels.diffusion import triton as backend

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not here")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Cells of more columns than a program has threads, and cells along a row that are no whole number of programs.
WIDE = {
    "wide-cell": {"grid": (1, 1), "size": (2, 300), "steps": 1, "channels": 1},
    "many-cells": {"grid": (2, 70), "size": (2, 140), "steps": 1, "channels": 1},
    "many-cells-non-integer": {"grid": (1, 70), "size": (2, 145), "steps": 1, "channels": 1},
}
HALF = ("batch-and-holes", "non-integer")


def found(problem: Problem) -> tuple[Tensor, dict[str, Tensor]]:
    """Values and gradients of the Triton backend, on the CPU."""
    out, gradients = problem.to(DEVICE).values_and_gradients(backend)
    return out.cpu(), {name: gradient.cpu() for name, gradient in gradients.items()}


@pytest.mark.parametrize("options", [*CASES.values(), *WIDE.values()], ids=[*CASES, *WIDE])
def test_values_and_gradients(options: dict) -> None:
    problem = make_problem(**options)
    out, gradients = found(problem)
    # Measured, of values up to 5: 6.8e-7, RMS 1.7e-7; gradients: 1.2e-6, RMS 2.8e-7.
    assert_near(out, truth(problem), largest=3e-6, rms=7e-7)
    expected = problem.to(torch.float64).gradients(reference)
    assert_same_gradients(gradients, expected, largest=4e-6, rms=9e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HALF)
def test_half_precision_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    problem = make_problem(**CASES[name] | {"steps": 1})
    problem = replace(problem, start=problem.start.to(dtype), signal=problem.signal.to(dtype))
    out, gradients = found(problem)
    unit, exact = torch.finfo(dtype).eps, truth(problem)
    # Triton's interpreter cuts digits off where it should round.
    units = 1.01 if dtype == torch.bfloat16 and DEVICE == "cpu" else 0.51
    assert out.dtype == dtype
    assert ((out - exact).abs() <= units * unit * exact.abs().clamp(min=1e-2)).all()
    assert {gradient.dtype for gradient in gradients.values()} == {dtype}
    expected = problem.to(torch.float64).gradients(reference)
    assert_same_gradients(gradients, expected, largest=unit, rms=unit / 4)


def test_conductances_in_half_precision() -> None:
    problem = make_problem(steps=1)
    problem = replace(problem, across=problem.across.half(), down=problem.down.half()).to(DEVICE)
    exact = truth(problem.to("cpu"))
    assert_near(problem.diffuse(backend).cpu(), exact, largest=3e-6, rms=7e-7)


def test_strides_do_not_matter() -> None:
    problem = make_problem(grid=(1, 2), size=(2, 6)).to(DEVICE)
    names = ("start", "signal", "across", "down")
    turned = replace(problem, **{name: getattr(problem, name).mT.contiguous().mT for name in names})
    assert torch.equal(turned.diffuse(backend), problem.diffuse(backend))


@pytest.mark.parametrize("name", ["non-integer", "batch-and-holes", "no-step"])
def test_all_is_written_that_is_returned_or_read(name: str) -> None:
    problem = make_problem(**CASES.get(name, {"steps": 0}))
    fill = torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)  # and with that `torch.empty` is full of NaN
        torch.utils.deterministic.fill_uninitialized_memory = True
        assert torch.empty(2).isnan().all()
        out, gradients = found(problem)
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill
    assert not out.isnan().any() and not any(gradient.isnan().any() for gradient in gradients.values())


def test_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight channels of an image at a time, and then some images (of nine channels) at a time."""
    from kernels.diffusion import _triton_launch

    problem = make_problem(grid=(1, 2), size=(2, 3), channels=9, batch=3, steps=2, valid=0.7)
    out, gradients = found(problem)
    for planes, parts in ((1, 6), (24, 2)):
        monkeypatch.setattr(_triton_launch, "PART", planes * 4 * 2 * 3)
        assert len(list(_triton_launch.parts(problem.start))) == parts
        assert not list(_triton_launch.parts(problem.start[:0]))
        assert not list(_triton_launch.parts(problem.start[:, :0]))
        again, again_gradients = found(problem)
        assert torch.equal(again, out), planes
        assert all(torch.equal(again_gradients[name], gradients[name]) for name in gradients), planes


@pytest.mark.parametrize("steps", [1, 5])
def test_inputs_are_left_alone(steps: int) -> None:
    options = {"grid": (1, 2), "size": (2, 4), "steps": steps}
    problem, same = make_problem(**options), make_problem(**options)
    found(problem)
    for name in ("start", "signal", "across", "down"):
        assert torch.equal(getattr(problem, name), getattr(same, name))


def test_a_constant_stays_and_full_share_holds_the_averages() -> None:
    problem = make_problem(share=1.0, rate=0.2).to(DEVICE)
    average = problem.diffuse(backend).unflatten(3, (3, 4)).unflatten(2, (2, 2)).mean((3, 5))
    assert_near(average, problem.signal, largest=2e-6, rms=1e-6)
    constant = replace(problem, start=torch.full_like(problem.start, 3), signal=torch.full_like(problem.signal, 3))
    assert (constant.diffuse(backend) - 3).abs().max() < 3e-6


# --- tiles


def test_tiles_are_what_the_kernel_can_take() -> None:
    from kernels.diffusion._triton_launch import tile_for

    sizes = itertools.product((1, 3, 17, 384), (1, 2, 16, 70), (1, 2, 14, 17, 300, backend.WIDEST_CELL + 1))
    for channels, cols, columns in sizes:
        tile = tile_for(channels, cols, columns)
        numbers = (tile.channels, tile.cells, tile.columns, tile.warps)
        assert all(number > 0 and number & (number - 1) == 0 for number in numbers), tile
        assert tile.columns >= columns and tile.channels < 2 * channels and tile.cells < 2 * cols
        assert tile.warps <= 8 and tile.channels <= 4, "offsets of four channels fit 32 bits: see `refuses`"
        assert tile.channels * tile.cells * tile.columns <= 4 * 32 * tile.warps, "four values of a thread"


def test_the_tile_of_a_vision_transformer_reads_whole_rows() -> None:
    from kernels.diffusion._triton_launch import Tile, tile_for

    assert tile_for(384, 16, 14) == Tile(channels=4, cells=8, columns=16, warps=4)


@pytest.mark.parametrize("cells, pixels", [(1, 1), (3, 7), (5, 7), (4, 4), (16, 224), (14, 225), (1, 300)])
def test_most_columns_is_the_overlap_of_the_widest_cell(cells: int, pixels: int) -> None:
    from kernels.diffusion._triton_launch import most_columns
    from kernels.geometry import area_weights

    assert most_columns(cells, pixels) == int((area_weights(pixels, cells) > 0).sum(1).max())


# --- what PyTorch sees


OPTIONS = {
    "plain": {"grid": (1, 2), "size": (2, 4)},
    "holes-non-integer": {"grid": (1, 2), "size": (1, 3), "valid": 0.5, "batch": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_opcheck(options: dict) -> None:
    from kernels.diffusion import _triton_ops

    problem = make_problem(**options, steps=1, channels=1).to(DEVICE)
    leaves = (problem.start.requires_grad_(), problem.signal.requires_grad_())
    rest = (problem.across, problem.down, problem.valid, problem.steps, problem.rate, problem.share)
    torch.library.opcheck(_triton_ops.diffuse, (*leaves, *rest))
    start, signal = (leaf.detach() for leaf in leaves)
    torch.library.opcheck(_triton_ops.diffuse_backward, (torch.ones_like(start), signal, *rest))


def test_compile_in_one_graph() -> None:
    problem = make_problem(grid=(1, 2), size=(2, 4), steps=2).to(DEVICE)

    def model(signal: Tensor) -> Tensor:
        return 2 * replace(problem, signal=signal + 1).diffuse(backend)

    plain, traced = (problem.signal.clone().requires_grad_() for _ in range(2))
    out, expected = torch.compile(model, fullgraph=True, backend="aot_eager")(traced), model(plain)
    assert torch.equal(out, expected)
    out.sum().backward(), expected.sum().backward()
    assert torch.equal(traced.grad, plain.grad)


def test_vmap_is_a_batch() -> None:
    problem = make_problem(grid=(1, 2), size=(2, 4), steps=1, batch=2).to(DEVICE)

    def one(start: Tensor, signal: Tensor, across: Tensor, down: Tensor) -> Tensor:
        item = replace(problem, start=start[None], signal=signal[None], across=across[None], down=down[None])
        return item.diffuse(backend)[0]

    mapped = torch.func.vmap(one)(problem.start, problem.signal, problem.across, problem.down)
    assert torch.equal(mapped, problem.diffuse(backend))


def test_a_gradient_of_the_conductances_is_refused() -> None:
    problem = make_problem(grid=(1, 1), size=(2, 2), steps=1).to(DEVICE)
    with pytest.raises(NotImplementedError, match="conductances"):
        problem.gradients(backend, ("start", "across"))
    assert "image" in (backend.refuses(problem.signal, problem.across.requires_grad_()) or "")


def test_a_second_derivative_raises() -> None:
    problem = make_problem(grid=(1, 1), size=(2, 2), steps=1).to(DEVICE)
    start = problem.start.requires_grad_()
    out = replace(problem, start=start).diffuse(backend)
    coefficients = torch.ones_like(out).requires_grad_()
    (gradient,) = torch.autograd.grad(out, start, coefficients, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        gradient.sum().backward()


# --- refusals


def refusal(signal: tuple[int, ...], conductance: tuple[int, ...]) -> str:
    # As large as they are said to be, but of one value.
    one = torch.zeros((), device=DEVICE)
    return backend.refuses(one.expand(signal), one.expand(conductance)) or ""


def test_what_is_refused() -> None:
    assert refusal((1, 384, 16, 16), (1, 224, 223)) == ""
    assert refusal((1, 3, 1, 1), (1, 5, backend.WIDEST_CELL - 1)) == ""
    assert "width" in refusal((1, 3, 1, 1), (1, 5, backend.WIDEST_CELL + 1))
    assert "an image" in refusal((1, 3, 4096, 4096), (1, 2**16, 2**16 - 1))
    assert "along an axis" in refusal((1, 3, 50000, 1), (1, 50000, 9))
    problem = make_problem().to(torch.float64)
    assert "float64" in (backend.refuses(problem.signal.to(DEVICE), problem.across.to(DEVICE)) or "")
    assert "one device" in (backend.refuses(problem.signal.to("meta"), problem.across.to(DEVICE)) or "")
