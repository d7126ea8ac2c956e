"""Initial Gaussians that follow the edges of the guide, from its structure tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ua import degrade, filters

SLOPE_SIGMA = 1.0  # pixels, of the Gaussian whose derivatives are the gradients
# Added to the sum of the eigenvalues, squared guide units per pixel: slopes far below 1/255 per pixel are no edge.
FLOOR = 1e-5
STRETCH = 0.5  # sigma along an edge is exp(this * coherence) times the one across


def along_edges(guide: Tensor, grid: tuple[int, int], sigma_x: float, sigma_y: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussians of `sigma_x` by `sigma_y`, stretched along the edges of their cell by exp(.5 coherence).

    The structure tensor J is the cell's mean of g g^T over pixels and channels, with g the Gaussian-smoothed gradient
    (Forstner & Gulch 1987; Weickert 1998); coherence = (l1 - l2) / (l1 + l2 + a small floor), from 0 (flat, or no
    direction) to 1. Where the sigmas differ (unequal scales) edges are followed in the space in which they are equal,
    and the result is turned into axes and an angle again.

    Args:
        guide: (B, G, H, W).
        grid: (h, w).
        sigma_x, sigma_y: initial standard deviations, HR pixels.

    Returns:
        sigma_x, sigma_y (HR pixels) and theta (radians, in [-pi / 2, pi / 2]), each (B, h, w); x is the longer axis.
        A cell without any slope keeps the Gaussian that was given.
    """
    mean = (sigma_x * sigma_y) ** 0.5
    # Gradients per unit of the space in which the Gaussian is round; scales of geometric mean 1 keep FLOOR's meaning.
    along_x = filters.blur(guide, SLOPE_SIGMA, order_x=1) * (sigma_x / mean)
    along_y = filters.blur(guide, SLOPE_SIGMA, order_y=1) * (sigma_y / mean)
    products = torch.stack([(a * b).sum(1) for a, b in ((along_x, along_x), (along_x, along_y), (along_y, along_y))], 1)
    xx, xy, yy = degrade.area(products, grid)[0].unbind(1)
    coherence = torch.hypot(xx - yy, 2 * xy) / (xx + yy + FLOOR)
    edge = 0.5 * torch.atan2(-2 * xy, yy - xx)  # across the direction of the greatest slope
    long = torch.exp(STRETCH * coherence)
    cos, sin = edge.cos(), edge.sin()
    # Covariance diag(sigma) (I + (long^2 - 1) e e^T) diag(sigma) with e the direction of the edge, then its axes.
    extra = long.square() - 1
    c_xx, c_yy = sigma_x**2 * (1 + extra * cos**2), sigma_y**2 * (1 + extra * sin**2)
    return _axes(c_xx, sigma_x * sigma_y * extra * cos * sin, c_yy)


def _axes(xx: Tensor, xy: Tensor, yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standard deviations along the longer and the shorter axis of a covariance, and the angle of the longer."""
    middle, half = (xx + yy) / 2, torch.hypot((xx - yy) / 2, xy)
    theta = 0.5 * torch.atan2(2 * xy, xx - yy)
    long = (middle + half).sqrt()
    return long, (xx * yy - xy * xy).clamp_min(0).sqrt() / long, theta
