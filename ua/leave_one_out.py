"""A fit for the signal at hand: Gaussians by which every LR cell is best predicted from the others around it.

The colour fit asks how the image reconstructs itself. Here the LR signal says where colour predicts *it*, and how far
and in which direction its cells belong together. All of it happens on the LR grid. (Choosing the width of a kernel by
leaving one out is as old as Stone 1974; here every cell gets its own two widths, angle and range.)
"""

from __future__ import annotations

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
    cells, there, offsets = neighbours(rows, cols, min(radius, MOST_RADIUS), signal.device)
    usable = there & known.flatten(1)[:, cells]  # [B, n, K]
    counted = known.flatten(1) & usable.any(2)
    if not steps or not bool(counted.any()):
        return gaussians.detach()
    values, colours = normalised(signal, known), guide_lr.detach().float().flatten(2)
    apart = (colours[:, :, :, None] - colours[:, :, cells]).square().sum(1)  # [B, n, K]
    values = values.mT.contiguous()  # [B, n, C]
    around = values[:, cells].mT.contiguous()  # [B, n, C, K]; a product of other layouts copies cell by cell
    dy, dx = offsets[:, 0] * scale[0], offsets[:, 1] * scale[1]
    noise = torch.randn(rows * cols, generator=torch.Generator().manual_seed(0)).to(values)
    start = (
        gaussians.sigma_x.log() + TURN * noise.view(rows, cols),
        gaussians.sigma_y.log(),
        gaussians.theta,
        (WIDER * gaussians.sigma_r).log(),
    )
    initial = torch.stack([lr_map.detach().float().flatten(1) for lr_map in start])  # [4, B, n]
    with torch.inference_mode(False), torch.enable_grad():
        values, around, apart, dy, dx = map(_usable_in_gradients, (values, around, apart, dy, dx))
        cells, usable, counted, initial = map(_usable_in_gradients, (cells, usable, counted, initial))
        free = initial.isfinite()  # no range term has an infinite sigma_r
        raw = initial.clone().requires_grad_()
        first, second = torch.zeros_like(initial), torch.zeros_like(initial)  # moments of Adam
        for step in range(1, steps + 1):
            log_x, log_y, theta, log_r = raw[:, :, cells]  # each [B, n, K], of the source
            cos, sin = theta.cos(), theta.sin()
            along, across = dx * cos + dy * sin, dy * cos - dx * sin
            squared = (along * (-log_x).exp()).square() + (across * (-log_y).exp()).square()
            score = -0.5 * (squared + apart * (-2 * log_r).exp())
            weights = score.masked_fill(~usable, -1e30).softmax(2)
            error = torch.einsum("bnk,bnck->bnc", weights, around) - values
            each = (error.square() + ROUNDING).sqrt().mean(2)  # [B, n]
            change = torch.where(free, raw - initial, 0)[[0, 1, 3]].square().mean(0)
            (gradient,) = torch.autograd.grad((each * counted + PRIOR * change).sum(), raw)
            # By hand: the first step of torch.optim.Adam imports a compiler, which takes seconds.
            first, second = torch.lerp(gradient, first, BETA_1), torch.lerp(gradient.square(), second, BETA_2)
            scale_of_second = (second / (1 - BETA_2**step)).sqrt() + EPSILON
            raw = (raw - RATE * first / (1 - BETA_1**step) / scale_of_second).detach().requires_grad_()
    maps = raw.detach().view(4, batch, rows, cols).to(gaussians.theta.dtype)
    found = (maps[0].exp(), maps[1].exp(), maps[2], maps[3].exp())
    predicted = counted.any(1)[:, None, None]
    return Gaussians(*(torch.where(predicted, *pair) for pair in zip(found, gaussians.detach(), strict=True)))


def _usable_in_gradients(tensor: Tensor) -> Tensor:
    """What was made in inference mode cannot take part in a gradient, a copy can."""
    return tensor.clone() if tensor.is_inference() else tensor


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
