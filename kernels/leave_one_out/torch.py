"""The portable backend: a table of neighbours and products in plain PyTorch, any device; gradients by hand."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.geometry import neighbour_offsets
from kernels.leave_one_out import BETA_1, BETA_2, EPSILON, PRIOR, RATE, ROUNDING


def refuses(signal: Tensor, guide: Tensor) -> str | None:
    """Why this backend cannot take these tensors; None: it can."""
    return None


def fit(
    values: Tensor,
    colours: Tensor,
    known: Tensor,
    raw: Tensor,
    *,
    scale: tuple[float, float],
    radius: int,
    steps: int,
) -> Tensor:
    """Same contract as `kernels.leave_one_out.reference.fit`."""
    problem = problem_of(values.detach(), colours.detach(), known, scale, radius)
    initial = now = raw.detach().flatten(2).clone()  # [4, B, n]
    first, second = torch.zeros_like(initial), torch.zeros_like(initial)
    for step in range(1, steps + 1):
        slope = gradient(now, initial, problem)
        first, second = torch.lerp(slope, first, BETA_1), torch.lerp(slope.square(), second, BETA_2)
        now = now - RATE * first / (1 - BETA_1**step) / ((second / (1 - BETA_2**step)).sqrt() + EPSILON)
    return now.view_as(raw)


class Problem(NamedTuple):
    """What all steps look at, for n cells and K candidates of each.

    Attributes:
        cells, there: see `neighbours`; back: of a candidate, where among all n K pairs it is the cell of its cell.
        dy, dx: (K,) from a candidate to the cell, HR pixels.
        values: (B, n, C), of the cells; around: (B, n, C, K), of their candidates.
        apart: (B, n, K), squared colour distance. usable: bool (B, n, K). counted: bool (B, n), cells to be predicted.
    """

    cells: Tensor
    there: Tensor
    back: Tensor
    dy: Tensor
    dx: Tensor
    values: Tensor
    around: Tensor
    apart: Tensor
    usable: Tensor
    counted: Tensor


def problem_of(values: Tensor, colours: Tensor, known: Tensor, scale: tuple[float, float], radius: int) -> Problem:
    """Of arguments like those of `fit`."""
    rows, cols = values.shape[-2:]
    offsets, opposite = (table.to(values.device) for table in neighbour_offsets(radius))
    cells, there = neighbours(rows, cols, offsets)
    usable = there & known.flatten(1)[:, cells]
    of_cells, pixels = values.flatten(2).mT.contiguous(), colours.flatten(2)
    return Problem(
        cells=cells,
        there=there,
        back=cells * len(offsets) + opposite,  # the candidate at an offset has the cell at the opposite one
        dy=(-offsets[:, 0] * scale[0]).to(values),
        dx=(-offsets[:, 1] * scale[1]).to(values),
        values=of_cells,
        around=of_cells[:, cells].mT.contiguous(),  # a product of other layouts copies cell by cell
        apart=(pixels[:, :, :, None] - pixels[:, :, cells]).square().sum(1),
        usable=usable,
        counted=known.flatten(1) & usable.any(2),
    )


def gradient(raw: Tensor, initial: Tensor, problem: Problem) -> Tensor:
    """Of `kernels.leave_one_out.reference.objective` by `raw` (4, B, n).

    With u, v = W d of a pair, its score is -(u^2 + v^2 + r apart) / 2, so that all a source needs are sums over its
    pairs of d score times u^2, v^2, u v and apart.
    """
    log_x, log_y, _, log_r = raw
    weights, u, v = _weights(raw, problem)
    error = (problem.around @ weights[..., None]).squeeze(3) - problem.values  # [B, n, C]
    slope = error * (error.square() + ROUNDING).rsqrt() * problem.counted[..., None] / error.shape[2]
    said = (slope[:, :, None] @ problem.around).squeeze(2)  # [B, n, K]
    by_score = weights * (said - (weights * said).sum(2, keepdim=True))
    pairs = by_score * torch.stack([u * u, v * v, u * v, problem.apart])  # [4, B, n, K]
    # From the cells that are predicted to the sources: the sum over the cells that have one as a candidate.
    by_x, by_y, by_turn, by_range = pairs.flatten(2)[:, :, problem.back].masked_fill(~problem.there, 0).sum(3)
    turned = (log_x - log_y).exp() - (log_y - log_x).exp()
    found = torch.stack([by_x, by_y, turned * by_turn, (-2 * log_r).exp() * by_range])
    change = torch.where(initial.isfinite(), raw - initial, 0)
    change[2] = 0
    return found + (2 * PRIOR / 3) * change


def _weights(raw: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Of the candidates, sums of 1, and u, v = W d: each (B, n, K)."""
    log_x, log_y, theta, log_r = raw
    cos, sin, narrow_x, narrow_y = theta.cos(), theta.sin(), (-log_x).exp(), (-log_y).exp()
    maps = torch.stack([cos * narrow_x, sin * narrow_x, -sin * narrow_y, cos * narrow_y, (-2 * log_r).exp()])
    ux, uy, vx, vy, r = maps[:, :, problem.cells]
    u, v = ux * problem.dx + uy * problem.dy, vx * problem.dx + vy * problem.dy
    score = -0.5 * (u * u + v * v + r * problem.apart)
    return score.masked_fill(~problem.usable, -1e30).softmax(2), u, v


def neighbours(rows: int, cols: int, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices (n, K) of the cells at the offsets (K, 2) from every cell, and which of them exist."""
    y, x = torch.arange(rows, device=offsets.device), torch.arange(cols, device=offsets.device)
    to_y = y[:, None, None] + offsets[:, 0]  # [h, 1, K]
    to_x = x[None, :, None] + offsets[:, 1]  # [1, w, K]
    there = (to_y >= 0) & (to_y < rows) & (to_x >= 0) & (to_x < cols)
    cells = to_y.clamp(0, rows - 1) * cols + to_x.clamp(0, cols - 1)
    return cells.flatten(0, 1), there.flatten(0, 1)
