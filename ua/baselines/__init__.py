"""Other ways to upsample, one module each, with one function `upsample(image, signal, valid=None, *, options ...)`.

Args (of every one):
    image: the HR guide (B, G, H, W), float in [0, 1]; its size is all that unguided methods use.
    signal: (B, C, h, w), floating point, any units.
    valid: bool (B, h, w), the known LR cells: the others are never read. None: all are known.

Returns:
    (B, C, H, W) in the signal's dtype, computed at least in float32.

Raises:
    TypeError, ValueError: arguments that do not fit together, and options out of range; the message names them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.geometry import owners

LEAST_SUPPORT = 0.5  # of a bicubic mask before it may be divided by: negative lobes can bring it to zero


def interpolate(signal: Tensor, size: tuple[int, int], mode: str, valid: Tensor | None = None) -> Tensor:
    """`functional.interpolate` (pixel centres aligned as areas) that never reads an invalid cell.

    With a mask it is normalised convolution (Knutsson and Westin, 1993): the interpolated masked signal divided by the
    interpolated mask. Where all cells under the window are invalid, the nearest known cells' average is interpolated
    (`fill`); where a bicubic mask is too small to divide by, the bilinear result is taken.

    Args:
        signal: (B, C, h, w), floating point.
        size: (H, W).
        mode: "nearest" (the owner of each pixel), "bilinear" or "bicubic".
        valid: bool (B, h, w), or None where all cells are known.

    Returns:
        (B, C, H, W) in the signal's dtype.
    """
    if valid is None:
        return _resize(_working(signal), size, mode).to(signal.dtype)
    weight = valid[:, None].to(_working(signal).dtype)
    values = torch.where(valid[:, None], _working(signal), 0)
    support = _resize(weight, size, mode)
    if mode == "bicubic":
        enough = support > LEAST_SUPPORT
        fallback = interpolate(values, size, "bilinear", valid)
    else:
        enough = support > 0
        fallback = _resize(fill(values, valid), size, mode)
    result = _resize(values, size, mode) / torch.where(enough, support, 1)
    return torch.where(enough, result, fallback).to(signal.dtype)


def fill(signal: Tensor, valid: Tensor) -> Tensor:
    """Invalid cells replaced by the average of their known neighbours, ring by ring from the rim of each hole.

    Args:
        signal: (B, C, h, w) float, zero where invalid.
        valid: bool (B, h, w) with at least one cell in each item.
    """
    known = valid[:, None].to(signal.dtype)
    values = signal
    while not known.all():
        # Averages over the whole 3 x 3 window: the number of cells cancels in the quotient.
        near = functional.avg_pool2d(known, 3, 1, 1)
        average = functional.avg_pool2d(values, 3, 1, 1) / torch.where(near > 0, near, 1)
        values = torch.where(known > 0, values, average)
        known = (near > 0).to(signal.dtype)
    return values


def check(image: Tensor, signal: Tensor, valid: Tensor | None) -> None:
    """Raise TypeError or ValueError unless the three fit together as the package describes."""
    for name, value in (("image", image), ("signal", signal)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a floating-point torch.Tensor, got {got}")
        if value.ndim != 4 or value.numel() == 0:
            raise ValueError(f"{name} must have four dimensions and not be empty, got {tuple(value.shape)}")
    if image.shape[0] != signal.shape[0]:
        raise ValueError(f"image and signal must have one batch size, got {image.shape[0]} and {signal.shape[0]}")
    if signal.shape[-2] > image.shape[-2] or signal.shape[-1] > image.shape[-1]:
        raise ValueError(f"signal must not exceed the image {tuple(image.shape[-2:])}, got {tuple(signal.shape[-2:])}")
    if valid is None:
        return
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        got = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise TypeError(f"valid must be a boolean torch.Tensor, got {got}")
    if valid.shape != (signal.shape[0], *signal.shape[-2:]):
        raise ValueError(f"valid must be (B, h, w) of the signal {tuple(signal.shape)}, got {tuple(valid.shape)}")
    if not valid.flatten(1).any(1).all():
        raise ValueError("valid must have at least one cell that holds in each item of the batch")


def _resize(signal: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if mode == "nearest":  # not PyTorch's: its rounding can move an owner
        rows, columns = (owners(n, pixels).to(signal.device) for n, pixels in zip(signal.shape[-2:], size, strict=True))
        return signal[..., rows[:, None], columns]
    return functional.interpolate(signal, size, mode=mode, align_corners=False)


def _working(signal: Tensor) -> Tensor:
    """Half precisions become float32: sums and quotients of a mask need its digits."""
    return signal if signal.dtype == torch.float64 else signal.float()
