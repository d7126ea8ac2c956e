"""Nothing to learn: the initial Gaussian in every cell, as in joint bilateral upsampling (Kopf et al. 2007)."""

from __future__ import annotations

import torch
from torch import Tensor

from ua.gaussians import Gaussians
from ua.parameterisations import Initial, Parameterisation, as_map


class Kernels(Parameterisation):
    maps: Tensor

    def __init__(
        self, shape: tuple[int, int, int], sigma_x: Initial, sigma_y: Initial, sigma_r: float, theta: Initial = 0.0
    ) -> None:
        super().__init__(shape, sigma_x, sigma_y, sigma_r)
        maps = [as_map(shape, value) for value in (sigma_x, sigma_y, theta, sigma_r)]
        self.register_buffer("maps", torch.stack([lr_map.to(maps[0]) for lr_map in maps]))

    def gaussians(self) -> Gaussians:
        return Gaussians(*self.maps.unbind())
