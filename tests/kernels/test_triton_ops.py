"""The Triton backend as PyTorch operators: opcheck, compile, export, vmap, autocast."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from compare import make_problem
from test_triton import DEVICE, on_device
from torch import Tensor

from kernels.bilateral import triton as backend
from kernels.geometry import Factors

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not here")

OPTIONS = {
    "plain": {"grid": (2, 2), "size": (5, 7)},
    "map-and-holes": {"grid": (2, 3), "size": (5, 7), "radius_map": True, "valid": 0.9, "border": "clamp", "batch": 2},
}


def arguments(options: dict) -> tuple:
    problem = on_device(make_problem(**options))
    tensors = (problem.signal, problem.guide, problem.guide_lr, *problem.factors)
    if problem.radius is not None and problem.valid is not None:  # opcheck cannot compare NaN: every pixel is reached
        problem.radius.clamp_(min=1)
        problem.valid.fill_(True)[:, 0, 0] = False
    return (*(t.clone().requires_grad_() for t in tensors), problem.radius, problem.valid, 2, problem.support.border)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_opcheck_render(options: dict) -> None:
    from kernels.bilateral import _triton_ops

    torch.library.opcheck(_triton_ops.render, arguments(options))


def test_opcheck_of_maps_that_are_transposed() -> None:
    from kernels.bilateral import _triton_ops

    problem = on_device(make_problem(grid=(2, 2), size=(5, 7), reconstruct=True))
    maps = tuple(lr_map.mT.contiguous().mT.requires_grad_() for lr_map in problem.factors)
    rest = (problem.signal, problem.guide, problem.guide_lr, *maps)
    torch.library.opcheck(_triton_ops.reconstruction_l1, (*rest, None, 2, "drop"))
    torch.library.opcheck(_triton_ops.render, (*rest, None, None, 2, "drop"))


def test_opcheck_backward() -> None:
    from kernels.bilateral import _triton_ops

    inputs = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments(OPTIONS["plain"]))
    out, lse = _triton_ops.render(*inputs)
    for asked in ((True, True, True), (True, False, False), (False, True, False)):
        torch.library.opcheck(_triton_ops.render_backward, (torch.ones_like(out), lse, *inputs, *asked))


def test_opcheck_loss() -> None:
    from kernels.bilateral import _triton_ops

    problem = on_device(make_problem(**OPTIONS["plain"], reconstruct=True))
    maps = tuple(lr_map.clone().requires_grad_() for lr_map in problem.factors)
    torch.library.opcheck(
        _triton_ops.reconstruction_l1, (problem.signal, problem.guide, problem.guide_lr, *maps, None, 2, "drop")
    )


class Upsampler(torch.nn.Module):
    """The operator inside somebody's model."""

    def __init__(self) -> None:
        super().__init__()
        self.problem = on_device(make_problem(**OPTIONS["plain"]))

    def forward(self, signal: Tensor) -> Tensor:
        p = self.problem
        return 2 * backend.render(signal + 1, p.guide, p.guide_lr, p.factors, support=p.support)


def test_compile_in_one_graph() -> None:
    model = Upsampler()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    plain, traced = (model.problem.signal.clone().requires_grad_() for _ in range(2))
    out, expected = compiled(traced), model(plain)
    assert torch.equal(out, expected)
    out.sum().backward(), expected.sum().backward()
    assert torch.equal(traced.grad, plain.grad)


@pytest.mark.gpu
def test_compile_by_inductor() -> None:
    model = Upsampler()
    out = torch.compile(model, fullgraph=True)(model.problem.signal)
    torch.testing.assert_close(out, model(model.problem.signal))


def test_export() -> None:
    model = Upsampler()
    program = torch.export.export(model, (model.problem.signal,))
    assert any("upsample_anything" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(model.problem.signal), model(model.problem.signal))


def test_vmap_is_a_batch() -> None:
    problem = on_device(make_problem(grid=(2, 2), size=(5, 7), batch=3))

    def one(signal: Tensor, guide: Tensor, guide_lr: Tensor, *factors: Tensor) -> Tensor:
        return backend.render(
            signal[None], guide[None], guide_lr[None], Factors(*(f[None] for f in factors)), support=problem.support
        )[0]

    inputs = (problem.signal, problem.guide, problem.guide_lr, *problem.factors)
    torch.testing.assert_close(torch.func.vmap(one)(*inputs), problem.render(backend))
    # Several signals over one image.
    out = torch.func.vmap(one, in_dims=(0, *[None] * 7))(problem.signal, *(tensor[0] for tensor in inputs[1:]))
    torch.testing.assert_close(out[1], one(problem.signal[1], *(tensor[0] for tensor in inputs[1:])))


def test_gradients_flow_through_vmap() -> None:
    problem = on_device(make_problem(grid=(2, 2), size=(5, 7), batch=2))
    inputs = (problem.guide, problem.guide_lr, *problem.factors)

    def one(signal: Tensor, guide: Tensor, guide_lr: Tensor, *factors: Tensor) -> Tensor:
        return backend.render(
            signal[None], guide[None], guide_lr[None], Factors(*(f[None] for f in factors)), support=problem.support
        )[0]

    mapped, plain = (problem.signal.clone().requires_grad_() for _ in range(2))
    torch.func.vmap(one)(mapped, *inputs).square().sum().backward()
    replace(problem, signal=plain).render(backend).square().sum().backward()
    torch.testing.assert_close(mapped.grad, plain.grad)
    # PyTorch has no functional transform of the gradients of a custom operator, and says so.
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda signal: one(signal, *(tensor[0] for tensor in inputs)).sum())(problem.signal[0])


def test_autocast_changes_nothing() -> None:
    problem = on_device(make_problem(grid=(2, 2), size=(5, 7)))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = problem.render(backend)
    assert out.dtype == torch.float32 and torch.equal(out, problem.render(backend))
