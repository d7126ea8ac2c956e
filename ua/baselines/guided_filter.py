"""The fast guided filter: in each window of LR cells the signal is an affine function of the guide's colour.

Sources: He, Sun, Tang, "Guided image filtering", 2013 (equations 14 to 16, colour guides), and He and Sun, "Fast guided
filter", 2015 (coefficients at low resolution, upsampled bilinearly and applied to the full guide).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ua.baselines import check, interpolate
from ua.degrade import area


def upsample(
    image: Tensor, signal: Tensor, valid: Tensor | None = None, *, radius: int = 1, eps: float = 1e-4
) -> Tensor:
    """An affine function of the guide in every window of cells; windows stop at the border and leave invalid cells out.

    The defaults are the best of 11 on the split dev of `experiment=transfer` (scales 4 to 16, both regimes; the mean of
    the error ratios to bilinear of depth and features and of 1 minus the gain in mIoU): radius 1 and 2, eps 1e-5 to 1.
    A sweep measures them again:
    `python -m ua.run -m experiment=transfer split=dev baseline.guided_filter.eps=0.001,0.0001,0.00001`.

    Args:
        image, signal, valid: see `ua.baselines`; the guide may have any number G of channels.
        radius: of the square window, LR cells; >= 1.
        eps: added to the diagonal of the guide's G x G covariance, squared guide units; > 0, greater means smoother.
    """
    check(image, signal, valid)
    if not (radius >= 1 and eps > 0):  # written so that NaN fails
        raise ValueError(f"radius must be at least 1 and eps greater than 0, got {radius} and {eps}")
    working = torch.float64 if signal.dtype == torch.float64 else torch.float32
    guide = image.to(working)
    # The small grid in float64: a covariance is a difference of products here, and eps may be less than its rounding.
    small = area(guide, (signal.shape[-2], signal.shape[-1]))[0].double()
    mask = torch.ones_like(small[:, :1]) if valid is None else valid[:, None].double()
    values = torch.where(mask > 0, signal.double(), 0)

    def mean(x: Tensor) -> Tensor:
        return _window_mean(x, mask, radius)

    mean_guide, mean_values = mean(small), mean(values)
    # (B, h, w, G, G) and (B, h, w, G, C): matrices last, as linalg wants them.
    variance = _outer(small, small, mean) - _matrix(mean_guide, mean_guide)
    covariance = _outer(small, values, mean) - _matrix(mean_guide, mean_values)
    ridge = eps * torch.eye(guide.shape[1], dtype=small.dtype, device=guide.device)
    slopes = torch.linalg.solve(variance + ridge, covariance)
    offset = mean_values.movedim(1, -1) - (mean_guide.movedim(1, -1)[..., None] * slopes).sum(-2)

    # Each cell averages the models of the windows that hold it; a window without a known cell has none.
    has_model = (_box(mask, radius) > 0).double()
    known = _box(has_model, radius)[:, 0] > 0
    size = (image.shape[-2], image.shape[-1])

    def full(coefficients: Tensor) -> Tensor:
        averaged = _window_mean(coefficients.movedim(-1, 1), has_model, radius).to(working)
        return interpolate(averaged, size, "bilinear", None if valid is None else known)

    result = full(offset)
    for channel in range(guide.shape[1]):  # one at a time: memory of C maps, not of G C
        result += full(slopes[..., channel, :]) * guide[:, channel : channel + 1]
    return result.to(signal.dtype)


def _window_mean(x: Tensor, mask: Tensor, radius: int) -> Tensor:
    """Mean of (B, C, h, w) over the cells of each window in the mask (B, 1, h, w); 0 where there is none."""
    count = _box(mask, radius)
    return _box(x * mask, radius) / torch.where(count > 0, count, 1)


def _box(x: Tensor, radius: int) -> Tensor:
    """Sum over the square window, nothing being outside the grid, divided by the window's size."""
    return functional.avg_pool2d(x, 2 * radius + 1, stride=1, padding=radius)


def _matrix(a: Tensor, b: Tensor) -> Tensor:
    """Products of each pair of channels: (B, G, h, w), (B, C, h, w) -> (B, h, w, G, C)."""
    return a.movedim(1, -1)[..., :, None] * b.movedim(1, -1)[..., None, :]


def _outer(a: Tensor, b: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Windowed means of the products of each pair of channels, (B, h, w, G, C)."""
    rows = [mean(a[:, i : i + 1] * b).movedim(1, -1) for i in range(a.shape[1])]
    return torch.stack(rows, dim=-2)
