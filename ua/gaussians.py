"""One anisotropic bilateral Gaussian per LR cell, in units that people can read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.geometry import Factors

# Added to 2 sigma^2 in every denominator, as the released code does: keeps vanishing kernels finite.
EPS = 1e-8


class Gaussians(NamedTuple):
    """Four maps, each (B, h, w).

    `sigma_x`, `sigma_y`: standard deviations along the rotated axes, HR pixels, > 0.
    `theta`: angle of the x axis, radians, counted from +x (right) towards +y (down).
    `sigma_r`: range standard deviation, guide units, > 0.
    """

    sigma_x: Tensor
    sigma_y: Tensor
    theta: Tensor
    sigma_r: Tensor

    def factors(self) -> Factors:
        """What the operator computes with; differentiable.

        x' = dx cos + dy sin and y' = -dx sin + dy cos, each divided by sqrt(2 sigma^2) (DESIGN section 1).
        """
        along = (2 * self.sigma_x.square() + EPS).rsqrt()
        across = (2 * self.sigma_y.square() + EPS).rsqrt()
        cos, sin = self.theta.cos(), self.theta.sin()
        return Factors(
            ux=along * cos,
            uy=along * sin,
            vx=-across * sin,
            vy=across * cos,
            r=(2 * self.sigma_r.square() + EPS).reciprocal(),
        )

    def detach(self) -> Gaussians:
        """The same maps cut from the graph, in memory of their own."""
        return Gaussians(*(lr_map.detach().clone() for lr_map in self))


def sigma_eff(gaussians: Gaussians) -> Tensor:
    """The larger standard deviation of each Gaussian, (B, h, w), HR pixels, without gradient."""
    return torch.maximum(gaussians.sigma_x.detach(), gaussians.sigma_y.detach())
