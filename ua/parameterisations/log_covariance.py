"""The logarithm of the covariance's square root, a free symmetric 2 x 2 matrix: any Gaussian, no angle and no saddle.

With L = [[m + d, o], [o, m - d]] the covariance is exp(2 L). Its eigenvalues are exp(2 (m +- rho)), where
rho^2 = d^2 + o^2, and the symmetric factor of the half-precision is

    exp(-L) / sqrt 2 = exp(-m) / sqrt 2 (cosh(rho) I - sinh(rho) / rho [[d, o], [o, -d]]),

smooth everywhere because cosh(rho) and sinh(rho) / rho are power series in rho^2. An EPS in the denominators, as
`ua.Gaussians.factors` has it, would have to enter by the eigenvalues and bring back their root, so there is none: an
exponential needs no guard, and the two differ only where a sigma is below some 1e-3 pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kernels.geometry import Factors
from ua.gaussians import EPS, Gaussians
from ua.parameterisations import Initial, Parameterisation, as_map, log_parameter, positive


class Kernels(Parameterisation):
    def __init__(
        self, shape: tuple[int, int, int], sigma_x: Initial, sigma_y: Initial, sigma_r: float, theta: Initial = 0.0
    ) -> None:
        super().__init__(shape, sigma_x, sigma_y, sigma_r)
        log_x, log_y, angle = as_map(shape, sigma_x).log(), as_map(shape, sigma_y).log(), as_map(shape, theta)
        self.mean = nn.Parameter((log_x + log_y) / 2)
        self.difference = nn.Parameter((log_x - log_y) / 2 * torch.cos(2 * angle))
        self.off_diagonal = nn.Parameter((log_x - log_y) / 2 * torch.sin(2 * angle))
        self.log_sigma_r = log_parameter(shape, sigma_r)

    def gaussians(self) -> Gaussians:
        rho = torch.hypot(self.difference, self.off_diagonal).detach()
        mean = self.mean.detach()
        theta = 0.5 * torch.atan2(self.off_diagonal, self.difference).detach()
        return Gaussians(positive(mean + rho), positive(mean - rho), theta, positive(self.log_sigma_r))

    def factors(self) -> Factors:
        squared = self.difference.square() + self.off_diagonal.square()
        cosh, sinh_over_rho = _cosh_and_sinhc(squared)
        scale = torch.exp(-self.mean) / math.sqrt(2)
        off_diagonal = -scale * sinh_over_rho * self.off_diagonal
        return Factors(
            ux=scale * (cosh - sinh_over_rho * self.difference),
            uy=off_diagonal,
            vx=off_diagonal,
            vy=scale * (cosh + sinh_over_rho * self.difference),
            r=(2 * positive(self.log_sigma_r).square() + EPS).reciprocal(),
        )


def _cosh_and_sinhc(squared: Tensor) -> tuple[Tensor, Tensor]:
    """cosh(rho) and sinh(rho) / rho from rho^2, with gradients that stay finite at 0."""
    small = squared < 1e-2
    rho = squared.masked_fill(small, 1.0).sqrt()
    cosh_series = 1 + squared / 2 * (1 + squared / 12 * (1 + squared / 30))
    sinhc_series = 1 + squared / 6 * (1 + squared / 20 * (1 + squared / 42))
    return torch.where(small, cosh_series, rho.cosh()), torch.where(small, sinhc_series, rho.sinh() / rho)
