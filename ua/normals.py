"""Unit surface normals of a depth or a height map, from planes fitted around every pixel.

Axes: x to the right and y down the image, z away from the camera for depth (so that visible surfaces have z < 0) and up
for heights. Missing and outside pixels have no part in a plane.

A disparity map alone gives no normals: its depth is `focal * baseline / (disparity + offset)`, and for the Middlebury
samples neither the constants nor the offset are at hand, while normals depend on both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SENSOR_SIGMA = 5.0  # pixels; a structured-light sensor's steps in depth are several pixels wide
GRAZING = 80.0  # degrees between normal and line of sight from which on a surface is taken for a jump in depth
LEAST_SHARE = 0.2  # of the window's weight that must be known; a corner of the image has a quarter
TRUNCATE = 3.0  # where windows end, in standard deviations


def from_depth(depth: Tensor, valid: Tensor, focal: float, sigma: float = SENSOR_SIGMA) -> tuple[Tensor, Tensor]:
    """Normals towards a pinhole camera whose optical axis meets the middle of the image.

    On a plane the inverse depth is an affine function of the pixel, so planes are fitted to that: exact, and a sensor
    that measures disparity has the same noise everywhere in it.

    Args:
        depth: (H, W) float along the optical axis, any unit, positive where valid.
        valid: bool (H, W).
        focal: focal length, pixels; > 0.
        sigma: standard deviation of the window of a plane, pixels; > 0.

    Returns:
        `(normals, valid)`: float32 (3, H, W), 0 where not valid; and bool (H, W), the valid pixels with enough known
        neighbours that the camera does not see at more than 80 degrees (planes laid across a jump in depth are such).

    Raises:
        TypeError, ValueError: an argument of another type, shape or range.
    """
    _check(depth, valid, focal=focal, sigma=sigma)
    inverse = torch.where(valid, 1 / depth.double().where(valid, 1), 0)
    value, slope_x, slope_y, enough = _planes(inverse, valid, sigma)
    height, width = depth.shape
    y = (torch.arange(height, dtype=value.dtype, device=depth.device) - (height - 1) / 2)[:, None]
    x = torch.arange(width, dtype=value.dtype, device=depth.device) - (width - 1) / 2
    # A plane n . (x/f, y/f, 1) depth = -1 has 1/depth = -(n_x x/f + n_y y/f + n_z).
    normals = -torch.stack([focal * slope_x, focal * slope_y, value - x * slope_x - y * slope_y])
    normals = normals / normals.norm(dim=0).clamp(min=1e-30)
    sight = torch.stack([(x / focal).expand_as(value), (y / focal).expand_as(value), torch.ones_like(value)])
    facing = -(normals * sight).sum(0) / sight.norm(dim=0)
    return _masked(normals, enough & (facing > math.cos(math.radians(GRAZING))))


def from_height(
    height: Tensor, valid: Tensor, spacing: tuple[float, float], sigma: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Upward normals of a height map seen from above.

    Args:
        height: (H, W) float.
        valid: bool (H, W).
        spacing: distance of neighbouring pixels along y and x in the unit of the height; > 0.
        sigma: standard deviation of the window of a plane, pixels; > 0.

    Returns:
        `(normals, valid)`: float32 (3, H, W), 0 where not valid; and bool (H, W), the valid pixels with enough known
        neighbours.

    Raises:
        TypeError, ValueError: an argument of another type, shape or range.
    """
    _check(height, valid, sigma=sigma, spacing_y=spacing[0], spacing_x=spacing[1])
    _, slope_x, slope_y, enough = _planes(height.double(), valid, sigma)
    normals = torch.stack([-slope_x / spacing[1], -slope_y / spacing[0], torch.ones_like(slope_x)])
    return _masked(normals / normals.norm(dim=0), enough)


def _planes(values: Tensor, valid: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted least squares with a Gaussian window around every pixel of (H, W) float64.

    Returns:
        value, slope along x and along y at every pixel; and where that is known, bool.
    """
    powers_y, powers_x = (_windows(size, sigma, values.device) for size in values.shape)
    weights = valid.double()
    known = torch.where(valid, values, 0)

    def moment(of: Tensor, x: int, y: int) -> Tensor:
        return powers_y[y] @ of @ powers_x[x].T

    share = moment(weights, 0, 0)
    sx, sy = moment(weights, 1, 0), moment(weights, 0, 1)
    sxx, sxy, syy = moment(weights, 2, 0), moment(weights, 1, 1), moment(weights, 0, 2)
    rows = [torch.stack(row, -1) for row in ((share, sx, sy), (sx, sxx, sxy), (sy, sxy, syy))]
    right = torch.stack([moment(known, 0, 0), moment(known, 1, 0), moment(known, 0, 1)], -1)
    enough = valid & (share >= LEAST_SHARE)
    system = torch.stack(rows, -2) + 1e-9 * torch.eye(3, dtype=torch.float64, device=values.device)
    plane = torch.linalg.solve(torch.where(enough[..., None, None], system, torch.eye(3).to(system)), right)
    return plane[..., 0], plane[..., 1], plane[..., 2], enough


def _windows(size: int, sigma: float, device: torch.device) -> list[Tensor]:
    """Gaussian weights times the 0th, 1st and 2nd power of the distance: three (size, size) float64."""
    places = torch.arange(size, dtype=torch.float64, device=device)
    distance = places - places[:, None]
    weights = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance.abs() <= max(1.0, TRUNCATE * sigma))
    weights = weights / weights.sum(1).max()  # 1 where nothing is cut off
    return [weights, weights * distance, weights * distance**2]


def _masked(normals: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(valid, normals, 0).float(), valid


def _check(values: Tensor, valid: Tensor, **positive: float) -> None:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise TypeError(f"the map must be a floating-point torch.Tensor, got {getattr(values, 'dtype', type(values))}")
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        raise TypeError(f"valid must be a boolean torch.Tensor, got {getattr(valid, 'dtype', type(valid))}")
    if values.ndim != 2 or values.numel() == 0 or values.shape != valid.shape:
        raise ValueError(f"the map and valid must be (H, W), got {tuple(values.shape)} and {tuple(valid.shape)}")
    for name, value in positive.items():
        if not value > 0:  # written so that NaN fails
            raise ValueError(f"{name} must be greater than 0, got {value}")
