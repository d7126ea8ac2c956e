"""Gradients of the two differentiable backends against finite differences in float64."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from compare import make_problem
from torch import Tensor

from kernels.bilateral import reference
from kernels.bilateral import torch as blocks
from kernels.geometry import Factors

each_backend = pytest.mark.parametrize("backend", [reference, blocks], ids=["reference", "torch"])
TINY = {"grid": (3, 2), "size": (7, 5), "channels": 2, "guide_channels": 2, "radius": 1}
CASES = {
    "plain": {},
    "clamped": {"border": "clamp", "radius": 2},
    "batch": {"batch": 2, "channels": 1},
    "radius-map": {"radius_map": True, "radius": 2, "border": "clamp"},
    "holes": {"valid": 0.4},
    "holes-and-radius-map": {"valid": 0.5, "radius_map": True, "radius": 2},
    "scale-1": {"grid": (3, 3), "size": (3, 3)},
}


@each_backend
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_render(backend: ModuleType, options: dict) -> None:
    problem = make_problem(**TINY | options).to(torch.float64)
    reached = problem.reached()[:, None]

    def render(signal: Tensor, guide: Tensor, guide_lr: Tensor, *factors: Tensor) -> Tensor:
        out = backend.render(
            signal,
            guide,
            guide_lr,
            Factors(*factors),
            support=problem.support,
            radius=problem.radius,
            valid=problem.valid,
        )
        return out.masked_fill(~reached, 0)

    inputs = (problem.signal, problem.guide, problem.guide_lr, *problem.factors)
    check(render, inputs)


@each_backend
def test_reconstruction_l1(backend: ModuleType) -> None:
    problem = make_problem(**TINY, batch=2, radius_map=True, reconstruct=True).to(torch.float64)

    def loss(source: Tensor, guide_lr: Tensor, *factors: Tensor) -> Tensor:
        return backend.reconstruction_l1(
            source, problem.guide, guide_lr, Factors(*factors), support=problem.support, radius=problem.radius
        )

    check(loss, (problem.signal, problem.guide_lr, *problem.factors))


def check(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    leaves = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=1e-7, rtol=1e-5)
