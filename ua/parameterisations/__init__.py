"""Exchangeable ways from free numbers to Gaussians, one module each, found by name.

A module holds a class `Kernels`, a subclass of `Parameterisation`: its `nn.Parameter`s are what Adam steps. One whose
Gaussians can turn takes a fifth argument, `theta`, and maps beside numbers; `init="structure_tensor"` asks for that.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from kernels.geometry import Factors
from ua.gaussians import Gaussians

# As in the released code.
SMALLEST_SIGMA = 1e-6
Initial = float | Tensor  # the same in every cell, or a map (B, h, w)


class Parameterisation(nn.Module):
    """Free numbers of one batch of images.

    Args (of every subclass):
        shape: (B, h, w).
        sigma_x, sigma_y: initial standard deviations, HR pixels.
        sigma_r: initial range standard deviation, guide units.

    Args (of those that can turn):
        sigma_x, sigma_y: numbers or maps (B, h, w).
        theta: initial angle, radians, within (-pi, pi); a number or a map (B, h, w).
    """

    def __init__(self, shape: tuple[int, int, int], sigma_x: Initial, sigma_y: Initial, sigma_r: float) -> None:
        super().__init__()

    def gaussians(self) -> Gaussians:
        """The maps of now, each (B, h, w), differentiable with respect to the parameters."""
        raise NotImplementedError

    def factors(self) -> Factors:
        """What the operator takes. Override where the way over angles has a singularity."""
        return self.gaussians().factors()


def can_turn(kernels: type[Parameterisation]) -> bool:
    """Whether a class `Kernels` takes an initial angle."""
    parameters = inspect.signature(kernels).parameters
    return "theta" in parameters or any(p.kind is p.VAR_POSITIONAL for p in parameters.values())


def as_map(shape: tuple[int, ...], value: Initial) -> Tensor:
    """A number everywhere, or a map of this shape, in memory of its own."""
    return value.detach().clone().expand(shape) if isinstance(value, Tensor) else torch.full(shape, float(value))


def log_parameter(shape: tuple[int, ...], value: Initial) -> nn.Parameter:
    """Free logarithms that start at log(value)."""
    return nn.Parameter(as_map(shape, value).log())


def positive(raw: Tensor) -> Tensor:
    """exp(raw), at least SMALLEST_SIGMA."""
    return raw.exp().clamp_min(SMALLEST_SIGMA)
