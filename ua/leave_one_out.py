"""A fit for the signal at hand: Gaussians by which every LR cell is best predicted from the others around it.

The colour fit asks how the image reconstructs itself. Here the LR signal says where colour predicts *it*, and how far
and in which direction its cells belong together. All of it happens on the LR grid. (Choosing the width of a kernel by
leaving one out is as old as Stone 1974; here every cell gets its own two widths, angle and range.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.geometry import disc_offsets
from ua.gaussians import Gaussians

BETA_1, BETA_2 = 0.9, 0.999  # of Adam (Kingma & Ba 2015), as usual
RATE, EPSILON = 0.1, 1e-3  # of Adam; a gradient that is rounding (a cell's is some .1) moves nothing
PRIOR = 0.1  # weight of the mean squared change of the logarithms of the sigmas
WIDER = 2.5  # than the start in colour: between cells, neighbours are further apart than pixels are from cells
MOST_RADIUS = 3  # cells: memory grows with its square, and more brought nothing
MOST_CHANNELS = 16  # a signal of more is projected at random: distances stay nearly as they are
TURN = 0.01  # relative noise of sigma_x at the start: round Gaussians have no gradient of theta
ROUNDING = 1e-4  # of the absolute error at zero, squared units of the signal's standard deviation


def fit(
    signal: Tensor,
    guide_lr: Tensor,
    gaussians: Gaussians,
    valid: Tensor | None,
    *,
    scale: tuple[float, float],
    radius: int,
    steps: int,
) -> Gaussians:
    """Step the Gaussians so that the mixture of the other cells predicts each cell's values (mean absolute error).

    The score is the render's, between the centres of cells: the Gaussian of the source, the colours of both on the LR
    grid. Cells beyond the border are no candidates.

    Args:
        signal: (B, C, h, w) float; every channel counts by its standard deviation.
        guide_lr: (B, G, h, w), the guide on the LR grid.
        gaussians: the start, maps (B, h, w); sigmas in HR pixels.
        valid: bool (B, h, w); other cells neither predict nor are predicted. None: all.
        scale: (s_y, s_x), HR pixels a cell.
        radius: of the disc of candidates, cells; >= 1, and no more than 3 are used.
        steps: of Adam.

    Returns:
        detached Gaussians; those of the start for an image without a cell to predict. An infinite sigma_r stays.
    """
    batch, _, rows, cols = signal.shape
    known = torch.ones_like(signal[:, 0], dtype=torch.bool) if valid is None else valid
    problem = problem_of(signal, guide_lr, known, scale, min(radius, MOST_RADIUS)) if steps else None
    if problem is None or not bool(problem.counted.any()):
        return gaussians.detach()
    noise = torch.randn(rows * cols, generator=torch.Generator().manual_seed(0)).to(problem.values)
    start = (
        gaussians.sigma_x.log() + TURN * noise.view(rows, cols),
        gaussians.sigma_y.log(),
        gaussians.theta,
        (WIDER * gaussians.sigma_r).log(),
    )
    initial = torch.stack([lr_map.detach().float().flatten(1) for lr_map in start])  # [4, B, n]
    raw = initial
    first, second = torch.zeros_like(initial), torch.zeros_like(initial)  # moments of Adam
    for step in range(1, steps + 1):
        slope = gradient(raw, initial, problem)
        first, second = torch.lerp(slope, first, BETA_1), torch.lerp(slope.square(), second, BETA_2)
        raw = raw - RATE * first / (1 - BETA_1**step) / ((second / (1 - BETA_2**step)).sqrt() + EPSILON)
    maps = raw.view(4, batch, rows, cols).to(gaussians.theta.dtype)
    found = (maps[0].exp(), maps[1].exp(), maps[2], maps[3].exp())
    predicted = problem.counted.any(1)[:, None, None]
    return Gaussians(*(torch.where(predicted, *pair) for pair in zip(found, gaussians.detach(), strict=True)))


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


def problem_of(signal: Tensor, guide_lr: Tensor, known: Tensor, scale: tuple[float, float], radius: int) -> Problem:
    """Of arguments like those of `fit`; known: bool (B, h, w)."""
    rows, cols = signal.shape[-2:]
    cells, there, offsets = neighbours(rows, cols, radius, signal.device)
    usable = there & known.flatten(1)[:, cells]
    values, colours = normalised(signal, known).mT.contiguous(), guide_lr.detach().float().flatten(2)
    # The candidate at an offset has the cell at the opposite one, which the disc has too.
    opposite = (offsets[:, None] == -offsets).all(2).int().argmax(1)
    return Problem(
        cells=cells,
        there=there,
        back=cells * len(offsets) + opposite,
        dy=offsets[:, 0] * scale[0],
        dx=offsets[:, 1] * scale[1],
        values=values,
        around=values[:, cells].mT.contiguous(),  # a product of other layouts copies cell by cell
        apart=(colours[:, :, :, None] - colours[:, :, cells]).square().sum(1),
        usable=usable,
        counted=known.flatten(1) & usable.any(2),
    )


def gradient(raw: Tensor, initial: Tensor, problem: Problem) -> Tensor:
    """Of `objective` by `raw` (4, B, n), by hand: autograd takes a hundred launches a step on a GPU, and sorts.

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
    by_x, by_y, by_turn, by_range = (pairs.flatten(2)[:, :, problem.back] * problem.there).sum(3)
    turned = (log_x - log_y).exp() - (log_y - log_x).exp()
    found = torch.stack([by_x, by_y, turned * by_turn, (-2 * log_r).exp() * by_range])
    change = torch.where(initial.isfinite(), raw - initial, 0)
    change[2] = 0
    return found + (2 * PRIOR / 3) * change


def objective(raw: Tensor, initial: Tensor, problem: Problem) -> Tensor:
    """The sum over the cells of the mean absolute error, rounded at zero, and of what changes of the sigmas cost.

    raw: (4, B, n), logarithms of sigma_x and sigma_y, theta, logarithm of sigma_r, of every source; initial: where they
    started. An infinite sigma_r (no range term) costs nothing. This is the definition; `gradient` is tested against it.
    """
    error = (problem.around @ _weights(raw, problem)[0][..., None]).squeeze(3) - problem.values
    each = (error.square() + ROUNDING).sqrt().mean(2)  # [B, n]
    change = torch.where(initial.isfinite(), raw - initial, 0)[[0, 1, 3]].square().mean(0)
    return (each * problem.counted + PRIOR * change).sum()


def _weights(raw: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Of the candidates, sums of 1, and u, v = W d: each (B, n, K)."""
    log_x, log_y, theta, log_r = raw
    cos, sin, narrow_x, narrow_y = theta.cos(), theta.sin(), (-log_x).exp(), (-log_y).exp()
    maps = torch.stack([cos * narrow_x, sin * narrow_x, -sin * narrow_y, cos * narrow_y, (-2 * log_r).exp()])
    ux, uy, vx, vy, r = maps[:, :, problem.cells]
    u, v = ux * problem.dx + uy * problem.dy, vx * problem.dx + vy * problem.dy
    score = -0.5 * (u * u + v * v + r * problem.apart)
    return score.masked_fill(~problem.usable, -1e30).softmax(2), u, v


def neighbours(rows: int, cols: int, radius: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indices (n, K) of the cells within a disc around every cell but itself, which exist, and offsets (K, 2).

    The offsets (dy, dx) point from the candidate to the cell, in cells.
    """
    offsets = disc_offsets(radius)[1:].to(device)
    y, x = torch.arange(rows, device=device), torch.arange(cols, device=device)
    to_y = y[:, None, None] + offsets[:, 0]  # [h, 1, K]
    to_x = x[None, :, None] + offsets[:, 1]  # [1, w, K]
    there = (to_y >= 0) & (to_y < rows) & (to_x >= 0) & (to_x < cols)
    cells = to_y.clamp(0, rows - 1) * cols + to_x.clamp(0, cols - 1)
    return cells.flatten(0, 1), there.flatten(0, 1), -offsets.float()


def normalised(signal: Tensor, known: Tensor) -> Tensor:
    """The signal (B, C, h, w) with unit standard deviation over the known cells, at most 16 channels: (B, C', n).

    Channels share one unit, so that a channel without much in it counts little. Unknown cells are 0.
    """
    mask = known.flatten(1)[:, None]
    values = signal.detach().float().flatten(2).masked_fill(~mask, 0)
    count = mask.sum(2, keepdim=True).clamp_min(1)
    centred = (values - values.sum(2, keepdim=True) / count).masked_fill(~mask, 0)
    channels = signal.shape[1]
    if channels > MOST_CHANNELS:
        mixing = torch.randn(MOST_CHANNELS, channels, generator=torch.Generator().manual_seed(0)).to(centred)
        centred = torch.einsum("dc,bcn->bdn", mixing, centred)
    variance = (centred.square().sum(2, keepdim=True) / count).mean(1, keepdim=True)
    return centred / torch.where(variance > 0, variance, 1).sqrt()
