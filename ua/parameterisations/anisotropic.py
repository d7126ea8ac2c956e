"""The paper's: free log sigma_x, log sigma_y and log sigma_r, and theta = pi tanh(raw), per cell.

Where sigma_x = sigma_y, as at the start, theta has no gradient; `log_covariance` has no such saddle.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ua.gaussians import Gaussians
from ua.parameterisations import Initial, Parameterisation, as_map, log_parameter, positive


class Kernels(Parameterisation):
    def __init__(
        self, shape: tuple[int, int, int], sigma_x: Initial, sigma_y: Initial, sigma_r: float, theta: Initial = 0.0
    ) -> None:
        super().__init__(shape, sigma_x, sigma_y, sigma_r)
        self.log_sigma_x = log_parameter(shape, sigma_x)
        self.log_sigma_y = log_parameter(shape, sigma_y)
        self.raw_theta = nn.Parameter(torch.atanh(as_map(shape, theta) / math.pi))
        self.log_sigma_r = log_parameter(shape, sigma_r)

    def gaussians(self) -> Gaussians:
        return Gaussians(
            sigma_x=positive(self.log_sigma_x),
            sigma_y=positive(self.log_sigma_y),
            theta=math.pi * torch.tanh(self.raw_theta),
            sigma_r=positive(self.log_sigma_r),
        )
