"""What every backend shares: where LR cells lie on the HR grid, who owns a pixel, which cells may reach it.

Units: HR pixels, pixel centres at integers. With n cells over N pixels the scale is s = N / n, any real number >= 1,
and cell i is centred at (i + .5) s - .5. The owner of a pixel is the cell with the nearest centre, floor((x + .5) / s).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """What the operator knows of the Gaussians: a factor of each half-precision matrix, and the range weight.

    score(p, q) = -(ux dx + uy dy)^2 - (vx dx + vy dy)^2 - r |guide(p) - guide_lr(q)|^2, with (dx, dy) = p - mu_q in
    HR pixels.

    Each map is (B, h, w). A factor, and not the matrix itself, so that a narrow rotated Gaussian loses no digits; and
    not angles, so that a parameterisation without angles has no saddle where the two axes are equal.
    """

    ux: Tensor
    uy: Tensor
    vx: Tensor
    vy: Tensor
    r: Tensor


def factor_gradients(factors: Factors, moments: Tensor) -> Factors:
    """Gradients of the factors from sums, over the pixels, of d score times (dx^2, dx dy, dy^2, colour distance).

    d score = -|W d|^2 - r D gives dW = -2 W (sum d d^T), dr = -sum D. `moments`: (B, 4, h, w).
    """
    xx, xy, yy, colour = moments.unbind(1)
    ux, uy, vx, vy = (lr_map.to(moments.dtype) for lr_map in factors[:4])
    gradients = (
        -2 * (ux * xx + uy * xy),
        -2 * (ux * xy + uy * yy),
        -2 * (vx * xx + vy * xy),
        -2 * (vx * xy + vy * yy),
        -colour,
    )
    return Factors(*(gradient.to(lr_map.dtype) for gradient, lr_map in zip(gradients, factors, strict=True)))


@dataclass(frozen=True)
class Support:
    """Which LR cells are candidates for a pixel: those within a disc around its owner, in cells.

    `radius`: radius of the disc; a render may be given a map of smaller ones, pixel by pixel.
    `border`: what an offset beyond the grid means: "drop" (no candidate) or "clamp" (the border cell once more).
    """

    radius: int
    border: str


def owner_starts(cells: int, pixels: int) -> list[int]:
    """First pixel of every cell along one axis, and `pixels` at the end: cell i owns [starts[i], starts[i + 1])."""
    # The smallest x with (2 x + 1) cells >= 2 pixels i, in integers, so that no rounding can move an owner.
    return [max(0, -((cells - 2 * pixels * i) // (2 * cells))) for i in range(cells)] + [pixels]


def owners(cells: int, pixels: int) -> Tensor:
    """Owner cell of every pixel along one axis, (pixels,) int64."""
    return (2 * torch.arange(pixels) + 1) * cells // (2 * pixels)


def centres(cells: int, pixels: int) -> Tensor:
    """Centre of every cell along one axis, HR pixels, (cells,) float64."""
    return (torch.arange(cells, dtype=torch.float64) + 0.5) * (pixels / cells) - 0.5


def disc_offsets(radius: int) -> Tensor:
    """Offsets (dy, dx) with dy^2 + dx^2 <= radius^2, nearest first, (K, 2) int64."""
    axis = torch.arange(-radius, radius + 1)
    offsets = torch.cartesian_prod(axis, axis)
    squared = (offsets**2).sum(1)
    nearest_first = torch.argsort(squared, stable=True)
    return offsets[nearest_first][squared[nearest_first] <= radius**2]


def neighbour_offsets(radius: int) -> tuple[Tensor, Tensor]:
    """Those of `disc_offsets` but (0, 0), (K, 2), and the place of each one's opposite among them, (K,); int64."""
    offsets = disc_offsets(radius)[1:]
    return offsets, (offsets[:, None] == -offsets).all(2).int().argmax(1)


def reached_pixels(valid: Tensor, size: tuple[int, int], support: Support, radius: Tensor | None) -> Tensor:
    """Pixels with a valid candidate, (B, H, W) bool, from the mask `valid` (B, h, w) and a `radius` map or None."""
    rows, cols = valid.shape[-2:]
    row, col = torch.arange(rows), torch.arange(cols)
    beyond = support.radius**2 + 1
    nearest = torch.full(valid.shape, beyond, device=valid.device)  # squared distance to the nearest valid candidate
    for dy, dx in disc_offsets(support.radius).tolist():
        key_row, key_col = (row + dy).clamp(0, rows - 1), (col + dx).clamp(0, cols - 1)
        candidate = valid[:, key_row][:, :, key_col]
        if support.border == "drop":
            inside = ((row + dy) == key_row)[:, None] & ((col + dx) == key_col)
            candidate = candidate & inside.to(valid.device)
        nearest = torch.where(candidate, nearest.clamp(max=dy * dy + dx * dx), nearest)
    at_pixels = nearest[:, owners(rows, size[0])][:, :, owners(cols, size[1])]
    return at_pixels <= (support.radius if radius is None else radius) ** 2


def area_weights(size: int, cells: int) -> Tensor:
    """Share of each pixel in each cell's average along one axis: (cells, size) float64, rows sum to 1.

    Raises:
        ValueError: fewer than one cell, or more than pixels.
    """
    check_cells(size, cells)
    edges = torch.arange(cells + 1, dtype=torch.float64) * (size / cells)
    pixels = torch.arange(size, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], pixels)
    high = torch.minimum(edges[1:, None], pixels + 1)
    overlap = (high - low).clamp(min=0)
    overlap[overlap < 1e-9] = 0  # slivers that are rounding of an edge on a pixel border
    return overlap / overlap.sum(1, keepdim=True)


def check_cells(size: int, cells: int) -> None:
    """Raises ValueError unless an axis of `size` pixels can have so many cells."""
    if not 1 <= cells <= size:
        raise ValueError(f"grid must have 1 to {size} cells along an axis of {size} pixels, got {cells}")
