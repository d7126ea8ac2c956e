"""The paper's Gaussians without the range term: colours play no part in the render. `sigma_r` is infinite."""

from __future__ import annotations

import torch

from ua.parameterisations import Initial, anisotropic


class Kernels(anisotropic.Kernels):
    def __init__(
        self, shape: tuple[int, int, int], sigma_x: Initial, sigma_y: Initial, sigma_r: float, theta: Initial = 0.0
    ) -> None:
        super().__init__(shape, sigma_x, sigma_y, sigma_r, theta)
        del self.log_sigma_r
        self.register_buffer("log_sigma_r", torch.full(shape, torch.inf))
