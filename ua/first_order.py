"""The first-order correction of the weights: local linear regression, so that a ramp nearly renders to a ramp.

A weighted mean of cells is pulled towards where its weights lie: beside a border, or an edge of the guide, they lie on
one side. Local linear regression (Fan & Gijbels, "Local polynomial modelling", 1996; here with a ridge) takes the value
at the pixel of the weighted line through the cells, which is the mean under the weights

    w(p, q) (1 + (p - m)^T (Cov + .1 I)^-1 (q - m)),

m and Cov the weighted mean and covariance of the candidates' positions, in cells. They still sum to 1 and may turn
negative. The mean of s under them is E[s] + (p - m)^T (Cov + .1 I)^-1 Cov[q, s], which needs plain means only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RIDGE = 0.1  # squared cells, beside the covariance of the positions


def corrected(
    mix: Callable[[Tensor], Tensor], signal: Tensor, size: tuple[int, int], valid: Tensor | None = None
) -> Tensor:
    """The mean of `signal` under the corrected weights, by one call of the plain operator with 3 C + 5 channels.

    Args:
        mix: the plain operator, (B, C', h, w) -> (B, C', H, W) for any C'; NaN at pixels without a candidate.
        signal: (B, C, h, w) in the precision of the computation.
        size: (H, W).
        valid: bool (B, h, w); None: all cells are, and no pixel is without a candidate.

    Returns:
        (B, C, H, W); NaN where `mix` gives NaN.
    """
    rows, cols = signal.shape[-2:]
    # Constants pass the correction as they are; without the mean, and with positions counted from the middle, the
    # differences of products below lose fewer digits. (In float32 they are good for grids of some 500 cells a side.)
    middle = mean_of_valid(signal.detach(), valid)
    y, x = (axis.to(signal) for axis in positions((rows, cols), (rows, cols)))
    moments = torch.stack(torch.broadcast_tensors(y, x, y * y, x * x, y * x))  # [5, h, w]
    moments = moments.expand(len(signal), -1, -1, -1)
    rest = signal - middle
    mixed = mix(torch.cat([rest, y * rest, x * rest, moments], dim=1))
    unreached = None if valid is None else mixed[:, :1].isnan()
    if unreached is not None:
        mixed = mixed.masked_fill(unreached, 0)  # NaN would come back through the products of the gradient
    mean, y_mean, x_mean, (m_y, m_x, m_yy, m_xx, m_yx) = _split(mixed, signal.shape[1])
    yy, xx, yx = m_yy - m_y * m_y + RIDGE, m_xx - m_x * m_x + RIDGE, m_yx - m_y * m_x
    to_y, to_x = (
        at - m for at, m in zip((axis.to(signal) for axis in positions(size, (rows, cols))), (m_y, m_x), strict=True)
    )
    determinant = yy * xx - yx * yx
    slope_y, slope_x = (xx * to_y - yx * to_x) / determinant, (yy * to_x - yx * to_y) / determinant
    out = middle + mean + slope_y * (y_mean - m_y * mean) + slope_x * (x_mean - m_x * mean)
    return out if unreached is None else out.masked_fill(unreached, torch.nan)


def _split(mixed: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    mean, y_mean, x_mean, moments = mixed.split([channels, channels, channels, 5], dim=1)
    return mean, y_mean, x_mean, moments.split(1, dim=1)


def positions(size: tuple[int, int], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Centres of pixels (or, where `size` is the grid, cells) in cells from the middle of the image: (H, 1), (W,)."""
    y, x = (
        (torch.arange(pixels, dtype=torch.float64) + 0.5) * (cells / pixels) - cells / 2
        for pixels, cells in zip(size, grid, strict=True)
    )
    return y[:, None], x


def mean_of_valid(signal: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of every channel over its valid cells, (B, C, 1, 1); 0 where there is none."""
    if valid is None:
        return signal.mean((-2, -1), keepdim=True)
    known = valid[:, None].to(signal)
    return (known * signal).sum((-2, -1), keepdim=True) / known.sum((-2, -1), keepdim=True).clamp_min(1)
