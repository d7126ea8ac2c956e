"""The portable backend: block matrix products in plain PyTorch, any device, gradients to everything by autograd.

All pixels of one LR cell share their candidates, and the spatial score is the product of a vector phi(p) of the pixel
and a vector psi(q) of the candidate, so the render is block-local attention: (P x 6) @ (6 x K), softmax, (P x K) @ (K
x C). Bands of LR rows are processed one after the other and recomputed in the backward pass, so memory stays linear
in the image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.geometry import Factors, Support, centres, disc_offsets, owner_starts

# Scores of one band: 1M values are 4 MB in fp32, enough for full speed; a backward pass holds 35 such buffers.
BAND_SCORES = 1 << 20


class _Axis(NamedTuple):
    """One axis of the block layout: `cells` blocks padded to the longest one."""

    pixel: Tensor  # [cells, P] pixel of every place in a block; padding repeats the last pixel
    offset: Tensor  # [cells, P] its position relative to the centre of the owner, HR pixels
    place: Tensor  # [pixels] where to find a pixel among the cells * P places
    scale: float


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
    """Same contract as `kernels.bilateral.reference.render`."""
    (rows, cols), (height, width) = signal.shape[-2:], guide.shape[-2:]
    axes = (_axis(rows, height, guide), _axis(cols, width, guide))
    # A band is some LR rows, or, where one alone is too large, some lines of the blocks of one row. What it holds are
    # scores (pixels x candidates) and the candidates' signals (channels x cells x candidates).
    candidates = len(disc_offsets(support.radius))
    scores_per_line = len(signal) * axes[1].pixel.numel() * candidates
    lines = max(1, min(axes[0].pixel.shape[1], BAND_SCORES // scores_per_line))
    values_per_row = max(scores_per_line * axes[0].pixel.shape[1], signal[:, :, 0].numel() * candidates)
    rows_per_band = max(1, BAND_SCORES // values_per_row)
    tensors = (signal.to(guide.dtype), guide, guide_lr, *factors)
    recompute = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    bands = []
    for first in range(0, rows, rows_per_band):
        last = min(rows, first + rows_per_band)
        for line in range(0, axes[0].pixel.shape[1], lines):
            along_y = axes[0]._replace(
                pixel=axes[0].pixel[:, line : line + lines], offset=axes[0].offset[:, line : line + lines]
            )
            arguments = (*tensors, radius, valid, support, (along_y, axes[1]), first, last)
            band = checkpoint(_render_band, *arguments, use_reentrant=False) if recompute else _render_band(*arguments)
            bands.append(band)
    places = torch.cat(bands, dim=2)  # [B, C, h * Py, w * Px]
    return places.index_select(2, axes[0].place).index_select(3, axes[1].place).to(signal.dtype)


def _axis(cells: int, pixels: int, guide: Tensor) -> _Axis:
    starts = torch.tensor(owner_starts(cells, pixels))
    first, last = starts[:-1, None], starts[1:, None] - 1
    longest = int((last - first).max()) + 1
    pixel = torch.minimum(first + torch.arange(longest), last)
    owner = torch.repeat_interleave(torch.arange(cells), starts.diff())
    place = owner * longest + torch.arange(pixels) - starts[owner]
    offset = (pixel - centres(cells, pixels)[:, None]).to(guide.dtype)
    device = guide.device
    return _Axis(pixel.to(device), offset.to(device), place.to(device), pixels / cells)


def _render_band(
    signal: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    ux: Tensor,
    uy: Tensor,
    vx: Tensor,
    vy: Tensor,
    r: Tensor,
    radius: Tensor | None,
    valid: Tensor | None,
    support: Support,
    axes: tuple[_Axis, _Axis],
    first: int,
    last: int,
) -> Tensor:
    """The blocks of LR rows [first, last): (B, C, rows * Py, w * Px), padding included."""
    (batch, channels, rows, cols), device = signal.shape, guide.device
    along_y, along_x = axes
    offsets = disc_offsets(support.radius).to(device)  # [K, 2]
    key_y = torch.arange(first, last, device=device)[:, None, None] + offsets[:, 0]  # [R, 1, K]
    key_x = torch.arange(cols, device=device)[:, None] + offsets[:, 1]  # [w, K]
    candidate = ((key_y >= 0) & (key_y < rows) & (key_x >= 0) & (key_x < cols))[None, :, :, None]  # [1, R, w, 1, K]
    if support.border == "clamp":
        candidate = torch.ones_like(candidate)
    key_y, key_x = key_y.clamp(0, rows - 1), key_x.clamp(0, cols - 1)

    def at_keys(lr_map: Tensor) -> Tensor:
        """(..., h, w) -> (..., R, w, K)"""
        return lr_map[..., key_y, key_x]

    def at_pixels(hr_map: Tensor) -> Tensor:
        """(..., H, W) -> (..., R, w, P) with P = Py * Px"""
        blocks = hr_map[..., along_y.pixel[first:last, None, :, None], along_x.pixel[None, :, None, :]]
        return blocks.flatten(-2)

    # Positions relative to the owner: products of small numbers lose no digits. Colours are subtracted pair by pair
    # instead: where sigma_r is small, r |I|^2 - 2 r I g + r |g|^2 would cancel all digits that matter.
    y = along_y.offset[first:last, None, :, None]
    x = along_x.offset[None, :, None, :]
    y, x = (v.flatten(-2)[None] for v in torch.broadcast_tensors(y, x))  # [1, R, w, P]
    phi = _stack(x * x, x * y, y * y, x, y, torch.ones_like(x))

    a, b, c, r = (at_keys(lr_map) for lr_map in (ux**2 + vx**2, ux * uy + vx * vy, uy**2 + vy**2, r))  # [B, R, w, K]
    mean_y = (key_y - torch.arange(first, last, device=device)[:, None, None]).to(guide.dtype) * along_y.scale
    mean_x = (key_x - torch.arange(cols, device=device)[:, None]).to(guide.dtype) * along_x.scale
    constant = -(a * mean_x**2 + 2 * b * mean_x * mean_y + c * mean_y**2)
    psi = _stack(-a, -2 * b, -c, 2 * (a * mean_x + b * mean_y), 2 * (b * mean_x + c * mean_y), constant)
    score = phi @ psi.mT  # [B, R, w, P, F] @ [B, R, w, F, K] -> [B, R, w, P, K]
    for pixel_colour, key_colour in zip(at_pixels(guide).unbind(1), at_keys(guide_lr).unbind(1), strict=True):
        score = score - r[..., None, :] * (pixel_colour[..., None] - key_colour[..., None, :]) ** 2

    if radius is not None:
        candidate = candidate & ((offsets**2).sum(1) <= at_pixels(radius)[..., None] ** 2)
    if valid is not None:
        candidate = candidate & at_keys(valid)[..., None, :]
    reached = candidate.any(-1, keepdim=True)
    weight = torch.softmax(score.masked_fill(~candidate & reached, -torch.inf), dim=-1)
    mixed = weight @ at_keys(signal).permute(0, 2, 3, 4, 1)  # [B, R, w, P, C]
    mixed = mixed.masked_fill(~reached, torch.nan)
    size_y, size_x = along_y.pixel.shape[1], along_x.pixel.shape[1]
    blocks = mixed.view(batch, last - first, cols, size_y, size_x, channels).permute(0, 5, 1, 3, 2, 4)
    return blocks.reshape(batch, channels, (last - first) * size_y, cols * size_x)


def _stack(*features: Tensor) -> Tensor:
    """Features as the last axis: [..., F]."""
    return torch.stack(torch.broadcast_tensors(*features), dim=-1)


def reconstruction_l1(
    source: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    factors: Factors,
    *,
    support: Support,
    radius: Tensor | None = None,
) -> Tensor:
    """Same contract as `kernels.bilateral.reference.reconstruction_l1`."""
    rendered = render(source, guide, guide_lr, factors, support=support, radius=radius)
    return (rendered - guide).abs().mean((1, 2, 3))
