"""What the tests of whole fit steps share: the same steps by autograd and torch.optim.Adam on the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType

import torch
from compare import Problem, assert_near, make_problem
from torch import Tensor

from kernels.bilateral import reference
from kernels.geometry import Factors

FLOOR, EPSILON, LR, LR_DECAY, STEPS = 1e-6, 1e-8, 0.05, 0.9, 6
# Options of `make_problem`, and cells of radius for every pixel of sigma (0: the radius is fixed).
FIT_CASES: dict[str, tuple[dict, float]] = {
    "fixed-radius": ({}, 0.0),
    "batch-clamped": ({"batch": 2, "border": "clamp"}, 0.0),
    "shrinking-radius": ({"grid": (6, 6), "size": (48, 48), "radius": 3}, 2 / 8),
    "grey": ({"guide_channels": 1}, 0.0),
    "four-channels": ({"guide_channels": 4}, 0.0),
}


def fit_problem(options: dict) -> Problem:
    return make_problem(**{"grid": (4, 4), "size": (32, 36), "radius": 2} | options, reconstruct=True)


def raw_maps(problem: Problem, seed: int = 0) -> Tensor:
    """log sigma_x, log sigma_y, raw theta, log sigma_r, away from the saddle sigma_x = sigma_y: (4, B, h, w)."""
    shape = (1, *problem.factors.r.shape)
    random = torch.Generator().manual_seed(seed)
    start = torch.tensor([math.log(5.0), math.log(3.0), 0.3, math.log(0.15)]).view(4, 1, 1, 1)
    return (start + 0.2 * torch.randn(4, *shape[1:], generator=random)).expand(4, *shape[1:]).contiguous()


def factors_of(raw: Tensor, floor: float, epsilon: float) -> Factors:
    """By the formulas of DESIGN section 1 and PAPER section 2."""
    sigma_x, sigma_y, sigma_r = (raw[i].exp().clamp_min(floor) for i in (0, 1, 3))
    theta = math.pi * torch.tanh(raw[2])
    along, across = (2 * sigma_x**2 + epsilon).rsqrt(), (2 * sigma_y**2 + epsilon).rsqrt()
    return Factors(
        along * theta.cos(),
        along * theta.sin(),
        -across * theta.sin(),
        across * theta.cos(),
        1 / (2 * sigma_r**2 + epsilon),
    )


def adam_on_the_reference(problem: Problem, parameter: Tensor, cells_per_pixel: float) -> Iterator[Tensor]:
    """Steps `parameter` (4, B, h, w) float64 in place; yields the losses before each step, (B,)."""
    exact = problem.to(torch.float64)
    adam = torch.optim.Adam([parameter], lr=LR)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, LR_DECAY)
    while True:
        radius = None
        if cells_per_pixel:
            cells = cells_per_pixel * parameter.detach()[:2].exp().amax(0)[:, None]
            at_pixels = torch.nn.functional.interpolate(cells, problem.guide.shape[-2:], mode="bilinear")[:, 0]
            radius = (at_pixels - 1e-3).ceil().clamp(1, problem.support.radius).long()
            assert radius.unique().numel() > 1, "a case in which radii vary"
        loss = reference.reconstruction_l1(
            exact.signal,
            exact.guide,
            exact.guide_lr,
            factors_of(parameter, FLOOR, EPSILON),
            support=problem.support,
            radius=radius,
        )
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        schedule.step()
        yield loss.detach()


def check_adam_on_the_reference(
    backend: ModuleType, options: dict, cells_per_pixel: float, *, device: str = "cpu", steps: int = STEPS
) -> None:
    """`backend.fit_anisotropic`, all steps at once and step by step, against `adam_on_the_reference`."""
    problem = fit_problem(options)
    parameter = torch.nn.Parameter(raw_maps(problem).double())
    reference_steps = adam_on_the_reference(problem, parameter, cells_per_pixel)
    expected = torch.stack([next(reference_steps) for _ in range(steps)])

    raw, watched = raw_maps(problem).to(device), raw_maps(problem).to(device)
    seen: list[tuple[int, Tensor, Tensor]] = []

    def each(step: int, loss: Tensor) -> None:
        seen.append((step, loss, watched.clone()))

    settings = {
        "support": problem.support,
        "cells_per_pixel": cells_per_pixel,
        "floor": FLOOR,
        "epsilon": EPSILON,
        "lr": LR,
        "lr_decay": LR_DECAY,
        "steps": steps,
    }
    tensors = [tensor.to(device) for tensor in (problem.signal, problem.guide, problem.guide_lr)]
    losses = backend.fit_anisotropic(*tensors, raw, **settings)
    assert_near(losses.cpu(), expected, largest=1e-5, rms=1e-5)
    # Adam divides by the gradient's size: where that is rounding noise, a step may go either way. Few such places.
    moved = (raw.cpu().double() - parameter.detach()).abs()
    assert float(moved.median()) < 1e-4 and float((moved > 0.02).double().mean()) < 0.02

    losses_watched = backend.fit_anisotropic(*tensors, watched, **settings, each=each)
    assert torch.equal(losses_watched, losses) and torch.equal(watched, raw)
    assert [step for step, _, _ in seen] == list(range(1, steps + 1))
    assert torch.equal(torch.stack([loss for _, loss, _ in seen]), losses)
    assert torch.equal(seen[-1][2], raw) and not torch.equal(seen[0][2], raw)


def check_the_floor(backend: ModuleType, *, device: str = "cpu") -> None:
    """A sigma below the floor acts as the floor and has no gradient."""
    problem = make_problem(size=(32, 32), reconstruct=True)
    raw = raw_maps(problem)
    raw[0], raw[1, :, :2] = math.log(1.5), math.log(1.9)
    stepped = raw.to(device, copy=True)
    losses = backend.fit_anisotropic(
        problem.signal.to(device),
        problem.guide.to(device),
        problem.guide_lr.to(device),
        stepped,
        support=problem.support,
        cells_per_pixel=0.0,
        floor=2.0,
        epsilon=1e-8,
        lr=0.1,
        lr_decay=1.0,
        steps=1,
    )
    expected = reference.reconstruction_l1(
        problem.signal, problem.guide, problem.guide_lr, factors_of(raw, 2.0, 1e-8), support=problem.support
    )
    assert_near(losses[0].cpu(), expected, largest=1e-6, rms=1e-6)
    below = raw.exp() < 2.0
    below[2] = below[0] & below[1]  # two equal axes have no angle
    assert torch.equal(stepped.cpu()[below], raw[below]), "no gradient below the floor"
    assert (stepped.cpu()[~below] != raw[~below]).all()
