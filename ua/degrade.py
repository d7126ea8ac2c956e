"""From a high-resolution truth to the low-resolution signal that an upsampler starts from."""

from __future__ import annotations

from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor


def area(signal: Tensor, grid: tuple[int, int], valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Exact average of the pixels under each LR cell, a pixel cut by a cell's border counting by its share.

    Unlike adaptive average pooling, whose windows overlap by whole pixels where the scale is no integer,
    cell `(i, j)` is exactly the rectangle `[i H/h, (i+1) H/h] x [j W/w, (j+1) W/w]`.

    Args:
        signal: (C, H, W) or (B, C, H, W), any dtype; averaged in float32 (float64 stays).
        grid: (h, w), at most (H, W).
        valid: bool (H, W) or (B, H, W), the known pixels; unknown ones may hold anything, NaN and inf included.

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
    rows, columns = (
        area_weights(size, cells).to(signal.device, _working(signal.dtype))
        for size, cells in zip(signal.shape[-2:], grid, strict=True)
    )
    values = signal.to(rows.dtype)
    if valid is None:
        known = torch.ones(signal.shape[:-3] + tuple(grid), dtype=torch.bool, device=signal.device)
        scales = tuple(size // cells for size, cells in zip(signal.shape[-2:], grid, strict=True))
        if tuple(cells * scale for cells, scale in zip(grid, scales, strict=True)) == tuple(signal.shape[-2:]):
            return F.avg_pool2d(values, scales), known  # the same, at a cost linear in the pixels
        return rows @ values @ columns.mT, known
    mask = _check_mask(valid, signal).unsqueeze(-3)
    coverage = rows @ mask.to(rows.dtype) @ columns.mT
    total = rows @ torch.where(mask, values, 0) @ columns.mT
    known = coverage > 0  # exact: a sum of products with zeros only is zero
    average = torch.where(known, total / torch.where(known, coverage, 1), 0)
    return average, known.squeeze(-3).expand(signal.shape[:-3] + tuple(grid)).clone()


def area_weights(size: int, cells: int) -> Tensor:
    """Share of each pixel in each cell's average along one axis: (cells, size) float64, rows sum to 1.

    Raises:
        ValueError: fewer than one cell, or more than pixels.
    """
    if not 1 <= cells <= size:
        raise ValueError(f"grid must have 1 to {size} cells along an axis of {size} pixels, got {cells}")
    edges = torch.arange(cells + 1, dtype=torch.float64) * (size / cells)
    pixels = torch.arange(size, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], pixels)
    high = torch.minimum(edges[1:, None], pixels + 1)
    overlap = (high - low).clamp(min=0)
    overlap[overlap < 1e-9] = 0  # slivers that are rounding of an edge on a pixel border
    return overlap / overlap.sum(1, keepdim=True)


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
    if valid.shape not in (signal.shape[-2:], signal.shape[:-3] + signal.shape[-2:]):
        raise ValueError(f"valid must be (H, W) or (B, H, W) of {tuple(signal.shape)}, got {tuple(valid.shape)}")
    return valid.to(signal.device)
