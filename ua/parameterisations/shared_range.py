"""The paper's Gaussians with one sigma_r for the whole image instead of one per cell."""

from __future__ import annotations

from ua.gaussians import Gaussians
from ua.parameterisations import Initial, anisotropic, log_parameter, positive


class Kernels(anisotropic.Kernels):
    def __init__(
        self, shape: tuple[int, int, int], sigma_x: Initial, sigma_y: Initial, sigma_r: float, theta: Initial = 0.0
    ) -> None:
        super().__init__(shape, sigma_x, sigma_y, sigma_r, theta)
        self.log_sigma_r = log_parameter((shape[0], 1, 1), sigma_r)

    def gaussians(self) -> Gaussians:
        gaussians = super().gaussians()
        return gaussians._replace(sigma_r=positive(self.log_sigma_r).expand_as(gaussians.theta))
