"""A fit for the signal at hand: Gaussians by which every LR cell is best predicted from the others around it.

The colour fit asks how the image reconstructs itself. Here the LR signal says where colour predicts *it*, and how far
and in which direction its cells belong together. All of it happens on the LR grid, by `kernels.leave_one_out`.
(Choosing the width of a kernel by leaving one out is as old as Stone 1974; here every cell gets its own two widths,
angle and range.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.geometry import disc_offsets
from ua import backends
from ua.gaussians import Gaussians

WIDER = 2.5  # than the start in colour: between cells, neighbours are further apart than pixels are from cells
MOST_RADIUS = 3  # cells: time grows with its square, and more brought nothing
MOST_CHANNELS = 16  # a signal of more is projected at random: distances stay nearly as they are
TURN = 0.01  # relative noise of sigma_x at the start: round Gaussians have no gradient of theta


def fit(
    signal: Tensor,
    guide_lr: Tensor,
    gaussians: Gaussians,
    valid: Tensor | None,
    *,
    scale: tuple[float, float],
    radius: int,
    steps: int,
    backend: str = "auto",
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
        backend: "auto" or a name of `kernels.leave_one_out`; any other counts as "auto".

    Returns:
        detached Gaussians; those of the start for an image without a cell to predict. An infinite sigma_r stays.
    """
    known = torch.ones_like(signal[:, 0], dtype=torch.bool) if valid is None else valid
    radius = min(radius, MOST_RADIUS)
    predicted = can_predict(known, radius)
    if not steps or not bool(predicted.any()):
        return gaussians.detach()
    values, colours, raw = normalised(signal, known), guide_lr.detach().float(), start_of(gaussians)
    chosen = backends.choose(backend, values, colours, package=backends.LEAVE_ONE_OUT)
    maps = chosen.fit(values, colours, known, raw, scale=scale, radius=radius, steps=steps).to(gaussians.theta.dtype)
    found = (maps[0].exp(), maps[1].exp(), maps[2], maps[3].exp())
    kinds = predicted[:, None, None]
    return Gaussians(*(torch.where(kinds, *pair) for pair in zip(found, gaussians.detach(), strict=True)))


def start_of(gaussians: Gaussians) -> Tensor:
    """The first parameters, (4, B, h, w) float32, as `kernels.leave_one_out` takes them."""
    maps = [lr_map.detach().float() for lr_map in gaussians]
    rows, cols = maps[0].shape[1:]
    noise = torch.randn(rows * cols, generator=torch.Generator().manual_seed(0)).view(rows, cols).to(maps[0])
    return torch.stack([maps[0].log() + TURN * noise, maps[1].log(), maps[2], (WIDER * maps[3]).log()])


def can_predict(known: Tensor, radius: int) -> Tensor:
    """Whether two known cells (B, h, w) of an image lie within a radius of each other, bool (B,)."""
    rows, cols = known.shape[1:]
    found = torch.zeros(len(known), dtype=torch.bool, device=known.device)
    for dy, dx in disc_offsets(radius)[1:].tolist():
        if dy < 0 or abs(dy) >= rows or abs(dx) >= cols:
            continue  # pairs have two offsets each, opposite ones
        pair = known[:, dy:, max(dx, 0) : cols + min(dx, 0)] & known[:, : rows - dy, max(-dx, 0) : cols + min(-dx, 0)]
        found = found | pair.flatten(1).any(1)
        if bool(found.all()):
            break
    return found


def normalised(signal: Tensor, known: Tensor) -> Tensor:
    """The signal (B, C, h, w) with unit standard deviation over the known cells, at most 16 channels: (B, C', h, w).

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
    return (centred / torch.where(variance > 0, variance, 1).sqrt()).unflatten(2, known.shape[1:])
