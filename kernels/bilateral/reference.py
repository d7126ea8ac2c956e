"""The definition of truth: the bilateral Gaussian render written as its formula reads, on any device and dtype.

Slow and plain on purpose. Gradients to every tensor argument come from autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.geometry import Factors, Support, centres, disc_offsets, owner_starts, owners


def refuses(signal: Tensor, guide: Tensor) -> str | None:
    """Why this backend cannot take these tensors; None: it can."""
    return None


def render(
    signal: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    factors: Factors,
    *,
    support: Support,
    radius: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Mix the LR `signal` up to the grid of `guide` with the softmax weights of the bilateral Gaussians.

    score(p, q) = -(ux dx + uy dy)^2 - (vx dx + vy dy)^2 - r |guide(p) - guide_lr(q)|^2
    out(p) = sum_q softmax_q(score(p, q)) signal(q), over the candidates q of p.

    Args:
        signal: (B, C, h, w).
        guide: (B, G, H, W), H >= h and W >= w.
        guide_lr: (B, G, h, w), the guide on the LR grid.
        factors: five maps (B, h, w), see `Factors`.
        support: the candidates of a pixel.
        radius: (B, H, W) int64, each pixel's own radius where it is smaller than the support's. None: the same for all.
        valid: (B, h, w) bool; cells marked False get no weight. None: all are valid.

    Returns:
        (B, C, H, W) in the signal's dtype; NaN at pixels with no valid candidate.
    """
    starts = owner_starts(signal.shape[-2], guide.shape[-2])
    strips = [
        _render_rows(signal, guide, guide_lr, factors, support, radius, valid, row, starts[row], starts[row + 1])
        for row in range(signal.shape[-2])
    ]
    return torch.cat(strips, dim=-2)


def _render_rows(
    signal: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    factors: Factors,
    support: Support,
    radius: Tensor | None,
    valid: Tensor | None,
    row: int,
    top: int,
    bottom: int,
) -> Tensor:
    """The pixel rows [top, bottom) that the cells of LR row `row` own: (B, C, bottom - top, W)."""
    (height, width), (rows, cols) = guide.shape[-2:], signal.shape[-2:]
    offsets = disc_offsets(support.radius).to(guide.device)  # [K, 2]
    key_y = row + offsets[:, :1]  # [K, 1]
    key_x = owners(cols, width).to(guide.device) + offsets[:, 1:]  # [K, W]
    inside = (key_y >= 0) & (key_y < rows) & (key_x >= 0) & (key_x < cols)  # [K, W]
    key_y, key_x = key_y.clamp(0, rows - 1), key_x.clamp(0, cols - 1)

    def at_keys(lr_map: Tensor) -> Tensor:
        """(B, ..., h, w) -> (B, ..., K, 1, W): the value of every candidate cell, one for all rows of the strip."""
        return lr_map[..., key_y, key_x].unsqueeze(-2)

    x, y = torch.arange(width).to(guide), torch.arange(top, bottom).to(guide)
    dx = x - centres(cols, width).to(guide)[key_x][:, None]  # [K, 1, W]
    dy = y[:, None] - centres(rows, height).to(guide)[key_y][:, None]  # [K, Y, 1]
    ux, uy, vx, vy, r = (at_keys(lr_map) for lr_map in factors)  # [B, K, 1, W] each
    colour = (guide[:, :, None, top:bottom] - at_keys(guide_lr)).square().sum(1)  # [B, K, Y, W]
    score = -(ux * dx + uy * dy).square() - (vx * dx + vy * dy).square() - r * colour

    candidate = torch.ones_like(score, dtype=torch.bool)
    if support.border == "drop":
        candidate &= inside[:, None]
    if radius is not None:
        candidate &= (offsets**2).sum(1)[:, None, None] <= radius[:, None, top:bottom] ** 2
    if valid is not None:
        candidate &= at_keys(valid)
    reached = candidate.any(1, keepdim=True)  # [B, 1, Y, W]
    # Softmax over nothing is NaN in value (wanted) and in gradient (not wanted): mark such pixels afterwards instead.
    score = score.masked_fill(~candidate & reached, -torch.inf)
    weight = torch.softmax(score, dim=1)
    mixed = torch.einsum("bkyx,bckx->bcyx", weight, at_keys(signal.to(guide.dtype)).squeeze(-2))
    return mixed.masked_fill(~reached, torch.nan).to(signal.dtype)


def reconstruction_l1(
    source: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    factors: Factors,
    *,
    support: Support,
    radius: Tensor | None = None,
) -> Tensor:
    """Mean absolute error of the guide rendered from `source` (B, G, h, w), an LR version of it: (B,)."""
    rendered = render(source, guide, guide_lr, factors, support=support, radius=radius)
    return (rendered - guide).abs().mean((1, 2, 3))
