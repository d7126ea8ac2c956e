"""One free scale per cell and no angle: sigma_x and sigma_y keep their initial ratio; log sigma_r per cell."""

from __future__ import annotations

import torch

from ua.gaussians import Gaussians
from ua.parameterisations import Parameterisation, log_parameter, positive


class Kernels(Parameterisation):
    def __init__(self, shape: tuple[int, int, int], sigma_x: float, sigma_y: float, sigma_r: float) -> None:
        super().__init__(shape, sigma_x, sigma_y, sigma_r)
        self.ratio = sigma_y / sigma_x
        self.log_sigma = log_parameter(shape, sigma_x)
        self.log_sigma_r = log_parameter(shape, sigma_r)

    def gaussians(self) -> Gaussians:
        sigma = positive(self.log_sigma)
        return Gaussians(sigma, self.ratio * sigma, torch.zeros_like(sigma), positive(self.log_sigma_r))
