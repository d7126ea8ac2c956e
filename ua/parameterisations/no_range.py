"""The paper's Gaussians without the range term: colours play no part in the render. `sigma_r` is infinite."""

from __future__ import annotations

import torch

from ua.parameterisations import anisotropic


class Kernels(anisotropic.Kernels):
    def __init__(self, shape: tuple[int, int, int], sigma_x: float, sigma_y: float, sigma_r: float) -> None:
        super().__init__(shape, sigma_x, sigma_y, sigma_r)
        del self.log_sigma_r
        self.register_buffer("log_sigma_r", torch.full(shape, torch.inf))
