"""From a high-resolution truth to the low-resolution signal that an upsampler starts from."""

from __future__ import annotations

from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.geometry import area_weights, check_cells

WINDOW_END = 3.0  # where the windows of `network_like` end, in standard deviations
LEAST_COVERAGE = 0.05  # of a window by known pixels, for its cell to be known


def area(signal: Tensor, grid: tuple[int, int], valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Exact average of the pixels under each LR cell, a pixel cut by a cell's border counting by its share.

    Unlike adaptive average pooling, whose windows overlap by whole pixels where the scale is no integer,
    cell `(i, j)` is exactly the rectangle `[i H/h, (i+1) H/h] x [j W/w, (j+1) W/w]`.

    Args:
        signal: (C, H, W) or (B, C, H, W), any dtype; averaged in float32 (float64 stays).
        grid: (h, w), at most (H, W).
        valid: bool (H, W), (B, H, W) or (B, 1, H, W), the known pixels; unknown ones may hold anything, NaN and inf
            included.

    Returns:
        `(lr, lr_valid)`: the averages over the known pixels, (C, h, w) or (B, C, h, w), 0 in cells without any; and
        where there was one, bool (h, w) or (B, h, w).

    Raises:
        TypeError, ValueError: an argument of another type or shape; the message names it.
    """
    if not isinstance(signal, Tensor):
        raise TypeError(f"signal must be a torch.Tensor, got {type(signal).__name__}")
    if signal.ndim not in (3, 4) or signal.numel() == 0:
        raise ValueError(f"signal must be (C, H, W) or (B, C, H, W) and not empty, got {tuple(signal.shape)}")
    if not isinstance(grid, (tuple, list)) or len(grid) != 2 or not all(isinstance(cells, Integral) for cells in grid):
        raise TypeError(f"grid must be a pair of integers (h, w), got {grid!r}")
    for size, cells in zip(signal.shape[-2:], grid, strict=True):
        check_cells(size, cells)
    values = signal.to(_working(signal.dtype))
    if valid is None:
        known = torch.ones(signal.shape[:-3] + tuple(grid), dtype=torch.bool, device=signal.device)
        scales = tuple(size // cells for size, cells in zip(signal.shape[-2:], grid, strict=True))
        if tuple(cells * scale for cells, scale in zip(grid, scales, strict=True)) == tuple(signal.shape[-2:]):
            return F.avg_pool2d(values, scales), known  # the same, at a cost linear in the pixels
    rows, columns = (area_weights(*sizes).to(values) for sizes in zip(signal.shape[-2:], grid, strict=True))
    if valid is None:
        return rows @ values @ columns.mT, known
    mask = _check_mask(valid, signal).unsqueeze(-3)
    coverage = rows @ mask.to(rows.dtype) @ columns.mT
    total = rows @ torch.where(mask, values, 0) @ columns.mT
    known = coverage > 0  # exact: a sum of products with zeros only is zero
    average = torch.where(known, total / torch.where(known, coverage, 1), 0)
    return average, known.squeeze(-3).expand(signal.shape[:-3] + tuple(grid)).clone()


def network_like(
    truth: Tensor,
    grid: tuple[int, int],
    valid: Tensor | None = None,
    *,
    jitter: float = 0.6,
    blur: float = 0.75,
    noise: float = 0.1,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """An LR signal such as a network gives: misplaced by a part of a cell, blurred beyond its cell, and noisy.

    Each cell averages the truth under a Gaussian window of its own, whose centre is off the cell's by a random offset;
    then noise is added. Probabilities are left to the caller to clamp at 0 and to normalise.

    Args:
        truth: (C, H, W), floating point; averaged in float32 (float64 stays).
        grid: (h, w), at most (H, W).
        valid: bool (H, W), the known pixels; None: all. Unknown ones may hold anything.
        jitter: offsets are uniform within this many cells along each axis; >= 0.
        blur: standard deviation of the window, cells; >= 0, where 0 takes the nearest pixel.
        noise: standard deviation of the noise as a share of each channel's over the known cells; >= 0.
        seed: of offsets and noise, which are the same on every device.

    Returns:
        `(lr, lr_valid)`: (C, h, w), 0 in unknown cells; and bool (h, w), the cells at least a twentieth of whose window
        lies on known pixels.

    Raises:
        TypeError, ValueError: an argument of another type, shape or range; the message names it.
    """
    if not isinstance(truth, Tensor) or not truth.is_floating_point():
        raise TypeError(f"truth must be a floating-point torch.Tensor, got {getattr(truth, 'dtype', type(truth))}")
    if truth.ndim != 3 or truth.numel() == 0:
        raise ValueError(f"truth must be (C, H, W) and not empty, got {tuple(truth.shape)}")
    for name, value in (("jitter", jitter), ("blur", blur), ("noise", noise)):
        if not value >= 0:  # written so that NaN fails
            raise ValueError(f"{name} must be at least 0, got {value}")
    rows, columns = grid
    for size, cells in zip(truth.shape[-2:], grid, strict=True):
        check_cells(size, cells)
    dtype = _working(truth.dtype)
    mask = torch.ones_like(truth[0], dtype=torch.bool) if valid is None else _check_mask(valid, truth)
    weights = mask.to(dtype)
    stacked = torch.cat([torch.where(mask, truth, 0).to(dtype), weights[None]])  # its last channel sums the weights
    random = torch.Generator().manual_seed(seed)
    offsets = jitter * (2 * torch.rand(2, rows, columns, generator=random, dtype=torch.float64) - 1)
    down = _windows(truth.shape[-2], torch.arange(rows)[:, None] + offsets[0], rows, blur).to(truth.device, dtype)
    across = _windows(truth.shape[-1], torch.arange(columns) + offsets[1], columns, blur).to(truth.device, dtype)
    sums = []
    for rows_of_cells, columns_of_cells in zip(down, across, strict=True):
        reached = rows_of_cells.any(0)  # the band of pixel rows under this row of cells
        band = torch.einsum("jy,cyx->cjx", rows_of_cells[:, reached], stacked[:, reached])
        sums.append(torch.einsum("jx,cjx->cj", columns_of_cells, band))
    *totals, coverage = torch.stack(sums, 1)
    known = coverage >= LEAST_COVERAGE
    lr = torch.where(known, torch.stack(totals) / torch.where(known, coverage, 1), 0)
    if noise > 0 and known.any():
        spread = lr[:, known].std(1, correction=0)
        drawn = torch.randn(lr.shape, generator=random, dtype=torch.float64).to(lr)
        lr = torch.where(known, lr + noise * spread[:, None, None] * drawn, 0)
    return lr, known


def _windows(size: int, centres: Tensor, cells: int, blur: float) -> Tensor:
    """Gaussian windows along one axis, one for each cell of the grid: (h, w) centres in cells -> (h, w, size)."""
    scale = size / cells
    pixels = torch.arange(size, dtype=torch.float64)
    distance = (pixels - ((centres[..., None] + 0.5) * scale - 0.5)).square()
    # The nearest pixel has weight 1, however narrow the window is and wherever its centre went.
    distance = distance - distance.min(-1, keepdim=True).values
    sigma = max(blur * scale, 1e-3)
    weights = torch.exp(-0.5 * distance / sigma**2) * (distance <= (WINDOW_END * sigma) ** 2)
    return weights / weights.sum(-1, keepdim=True)


def one_hot(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Class maps of a label map with void -1.

    Args:
        labels: (H, W) or (B, H, W) integers in -1 .. num_classes - 1.
        num_classes: at least 1.

    Returns:
        `(probabilities, valid)`: float32 (num_classes, H, W) or (B, num_classes, H, W), zero at void pixels; and the
        mask of the others, bool in the shape of `labels`.

    Raises:
        TypeError: no integer map. ValueError: empty, or a class out of range.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim not in (2, 3):
        got = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be an integer torch.Tensor (H, W) or (B, H, W), got {got}")
    if num_classes < 1 or labels.numel() == 0:
        raise ValueError(f"labels must not be empty and num_classes at least 1, got {labels.numel()} and {num_classes}")
    if labels.min() < -1 or labels.max() >= num_classes:
        raise ValueError(f"labels must be -1 to {num_classes - 1}, got {labels.min().item()} to {labels.max().item()}")
    classes = torch.arange(num_classes, device=labels.device)[:, None, None]
    return (labels.unsqueeze(-3) == classes).float(), labels >= 0


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_mask(valid: Tensor, signal: Tensor) -> Tensor:
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        got = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise TypeError(f"valid must be a boolean torch.Tensor, got {got}")
    if valid.ndim == 4 and valid.shape[1] == 1:
        valid = valid[:, 0]
    if valid.shape not in (signal.shape[-2:], signal.shape[:-3] + signal.shape[-2:]):
        accepted = f"(H, W), (B, H, W) or (B, 1, H, W) of a signal {tuple(signal.shape)}"
        raise ValueError(f"valid must be {accepted}, got {tuple(valid.shape)}")
    return valid.to(signal.device)
