"""Candidate tables of the Triton kernels: which cells a cell's pixels may reach, and how often a border cell counts.

Both depend on the grid and the support alone, and cells far from the border all have the same, so they are kept by
class of cell: at most 2 radius + 1 classes along an axis. A class lists its candidates that lie in the grid, nearest
first. Where the border is clamped, a border cell stands for the offsets beyond it too; it is listed once, with the
logarithm of their number, which depends on the radius of the pixel's disc.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.geometry import Support, disc_offsets

# The tables grow with the fourth power of the radius, with the fifth where radii vary: .2 GB at these limits.
MOST_RADIUS, MOST_VARYING_RADIUS = 32, 16


class Candidates(NamedTuple):
    """Tables of one grid. K offsets lie in the disc of the support; an offset's number is its *slot*.

    `n_radii` rows are kept for the radii 0 to the support's where pixels have radii of their own, else one for all.
    """

    classes: Tensor  # (h w) int32: class of every cell
    keys: Tensor  # (classes, K) int32: candidates, nearest first, as slot << 16 | dy + 128 << 8 | dx + 128, in cells
    counts: Tensor  # (classes, n_radii) int32: how many of them lie within a radius
    copies: Tensor  # (classes, n_radii, K) float32: log2 of how often each counts; -inf where it does not
    slot_copies: Tensor  # the same by slot, and not by place in the list
    offsets: Tensor  # (2, K) int32: dy and dx of every slot
    slots: Tensor  # ((2 radius + 1)^2) int32: slot of an offset (dy + radius) (2 radius + 1) + dx + radius; -1 beyond


@lru_cache(maxsize=16)
def candidates(rows: int, cols: int, support: Support, varies: bool, device: torch.device) -> Candidates:
    """Tables for a grid of rows x cols cells; `varies`: pixels have radii of their own.

    Raises:
        ValueError: a larger radius than the tables can hold.
    """
    most = MOST_VARYING_RADIUS if varies else MOST_RADIUS
    if support.radius > most:
        raise ValueError(
            f"radius must be at most {most} for backend 'triton', got {support.radius}; use backend='torch'"
        )
    with torch.device("cpu"):
        tables = _on_the_cpu(rows, cols, support, varies)
    return Candidates(*(table.to(device) for table in tables))


def _on_the_cpu(rows: int, cols: int, support: Support, varies: bool) -> Candidates:
    offsets = disc_offsets(support.radius)  # [K, 2]
    squared = (offsets**2).sum(1)
    radii = torch.arange(support.radius + 1) if varies else torch.tensor([support.radius])
    within = squared <= radii[:, None] ** 2  # [n_radii, K]
    slots = _slots(offsets, support.radius)
    (class_y, first_y), (class_x, first_x) = _axis_classes(rows, support.radius), _axis_classes(cols, support.radius)
    keys, orders, counts, copies = [], [], [], []
    for row in first_y:
        for col in first_x:
            target = offsets + torch.tensor([row, col])
            clamped = torch.stack([target[:, 0].clamp(0, rows - 1), target[:, 1].clamp(0, cols - 1)], dim=1)
            inside = (clamped == target).all(1)
            listed = inside.nonzero()[:, 0]
            padded = torch.cat([listed, listed.new_zeros(len(offsets) - len(listed))])
            keys.append(padded << 16 | offsets[padded, 0] + 128 << 8 | offsets[padded, 1] + 128)
            orders.append(padded)
            counts.append((within & inside).sum(1))
            dy, dx = (clamped - torch.tensor([row, col]) + support.radius).unbind(1)
            stands_for = slots[dy * (2 * support.radius + 1) + dx]  # [K]: a clamped offset is never longer
            counted = within if support.border == "clamp" else within & inside
            number = torch.zeros(len(radii), len(offsets), dtype=torch.float32)
            number = number.index_add_(1, stands_for, counted.float())
            copies.append(number.log2())  # log2 0 = -inf
    slot_copies, order = torch.stack(copies), torch.stack(orders)
    return Candidates(
        classes=(class_y[:, None] * len(first_x) + class_x).flatten().int(),
        keys=torch.stack(keys).int(),
        counts=torch.stack(counts).int(),
        copies=slot_copies.gather(2, order[:, None].expand_as(slot_copies)),
        slot_copies=slot_copies,
        offsets=offsets.T.int().contiguous(),
        slots=slots.int(),
    )


def _slots(offsets: Tensor, radius: int) -> Tensor:
    """Slot of every offset in the square around the disc, -1 outside it, ((2 radius + 1)^2) int64."""
    side = 2 * radius + 1
    slots = torch.full((side * side,), -1)
    slots[(offsets[:, 0] + radius) * side + offsets[:, 1] + radius] = torch.arange(len(offsets))
    return slots


def _axis_classes(cells: int, radius: int) -> tuple[Tensor, list[int]]:
    """Class of every cell along an axis, by how far the border is up to the radius, and each class's first cell."""
    firsts: dict[tuple[int, int], int] = {}
    classes = []
    for cell in range(cells):
        borders = (min(cell, radius), min(cells - 1 - cell, radius))
        firsts.setdefault(borders, cell)
        classes.append(list(firsts).index(borders))
    return torch.tensor(classes), list(firsts.values())
