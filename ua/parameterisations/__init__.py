"""Exchangeable ways from free numbers to Gaussians, one module each, found by name.

A module holds a class `Kernels`, a subclass of `Parameterisation`: its `nn.Parameter`s are what Adam steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.geometry import Factors
from ua.gaussians import Gaussians

# As in the released code.
SMALLEST_SIGMA = 1e-6


class Parameterisation(nn.Module):
    """Free numbers of one batch of images.

    Args (of every subclass):
        shape: (B, h, w).
        sigma_x, sigma_y: initial standard deviations, HR pixels.
        sigma_r: initial range standard deviation, guide units.
    """

    def __init__(self, shape: tuple[int, int, int], sigma_x: float, sigma_y: float, sigma_r: float) -> None:
        super().__init__()

    def gaussians(self) -> Gaussians:
        """The maps of now, each (B, h, w), differentiable with respect to the parameters."""
        raise NotImplementedError

    def factors(self) -> Factors:
        """What the operator takes. Override where the way over angles has a singularity."""
        return self.gaussians().factors()


def log_parameter(shape: tuple[int, ...], value: float) -> nn.Parameter:
    """Free logarithms that start at log(value)."""
    return nn.Parameter(torch.full(shape, value).log())


def positive(raw: Tensor) -> Tensor:
    """exp(raw), at least SMALLEST_SIGMA."""
    return raw.exp().clamp_min(SMALLEST_SIGMA)
