"""Nothing to learn: the initial Gaussian in every cell, as in joint bilateral upsampling (Kopf et al. 2007)."""

from __future__ import annotations

import torch
from torch import Tensor

from ua.gaussians import Gaussians
from ua.parameterisations import Parameterisation


class Kernels(Parameterisation):
    maps: Tensor

    def __init__(self, shape: tuple[int, int, int], sigma_x: float, sigma_y: float, sigma_r: float) -> None:
        super().__init__(shape, sigma_x, sigma_y, sigma_r)
        values = torch.tensor([sigma_x, sigma_y, 0.0, sigma_r])
        self.register_buffer("maps", values[:, None, None, None].expand(4, *shape).clone())

    def gaussians(self) -> Gaussians:
        return Gaussians(*self.maps.unbind())
