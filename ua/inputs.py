"""What users hand in, checked and brought to one form: (B, C, H, W) tensors."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Rounding of a resize or a colour conversion, not a different range.
RANGE_SLACK = 1e-4
INTEGERS = "turn class ids into one-hot channels, and depth or masks into floats, first"
# Times as long as wide are cells of channels that were taken for columns; or those that would be square if the channels
# came last, and are not.
LONG, UNEVEN, SQUARE = 3.0, 1.25, 1.1
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PLANES = (1, 3, 4)  # channels of an image whose axes are in the order of a tensor's
MANY = 16  # bands, beside a width of 3 or 4 pixels: a tensor with the axes of an array
# Converted to L or RGB, transparency dropped; others (16-bit, float) would be clipped.
PIL_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")


def as_image(image: Any) -> Tensor:
    """Any accepted image -> (B, G, H, W) float.

    Tensor (B, G, H, W) or (G, H, W), NumPy (H, W, G) or (H, W), or PIL; float in [0, 1] or uint8.
    float64 stays, everything else becomes float32.

    Raises:
        TypeError: another type, dtype or layout. ValueError: another shape, empty, NaN, inf, or outside [0, 1].
    """
    tensor = _image_tensor(image)
    _check_dense("image", tensor)
    if tensor.dtype == torch.uint8:
        tensor = tensor.float() / 255
    if tensor.dtype not in FLOATS:
        raise TypeError(f"image must be float in [0, 1] or uint8, got {tensor.dtype}")
    if tensor.dtype != torch.float64:
        tensor = tensor.float()
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4 or tensor.numel() == 0:
        raise ValueError(f"image must be (B, G, H, W) or (G, H, W) and not empty, got {_shape(image)}")
    low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
    if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):  # written so that NaN fails
        raise ValueError(f"image must be finite and in [0, 1], got values from {low:g} to {high:g}")
    return tensor


def _image_tensor(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        if image.ndim in (3, 4) and image.shape[-1] in PLANES[1:] and image.shape[-3] >= MANY:
            raise ValueError(
                f"image as a tensor must be (B, G, H, W) or (G, H, W), channels first, got {_shape(image)}; "
                "image.movedim(-1, -3) turns it"
            )
        return image
    if hasattr(image, "convert") and hasattr(image, "getbands"):  # PIL, which we need not import to know
        if image.mode not in PIL_MODES:
            raise ValueError(
                f"image must have one of the PIL modes {', '.join(PIL_MODES)}, got {image.mode!r}; "
                "make a float array in [0, 1] of it (ua.io.load_image reads 16-bit files)"
            )
        image = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3):
            raise ValueError(f"image as a NumPy array must be (H, W, G) or (H, W), got {_shape(image)}")
        if image.ndim == 3 and image.shape[0] in PLANES and image.shape[2] not in PLANES:
            raise ValueError(f"image as a NumPy array must be (H, W, G), channels last, got {_shape(image)}")
        return _from_numpy("image", np.atleast_3d(image).transpose(2, 0, 1), "float in [0, 1] or uint8")
    raise TypeError(f"image must be a tensor, a NumPy array or a PIL image, got {type(image).__name__}")


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_meta:
        raise TypeError(f"{name} must be a dense tensor with values, got {tensor.layout} on {tensor.device}")


def _from_numpy(name: str, array: np.ndarray, accepted: str) -> Tensor:
    """A tensor of the same values; arrays in another byte order are copied."""
    if array.dtype.kind not in "fub" or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must be {accepted}, got {array.dtype}")
    # A copy where the memory is read-only: PyTorch cannot promise to leave it alone.
    array = np.array(array) if not array.flags.writeable else array
    return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))


def as_signal(signal: Any, valid: Any, guide: Tensor) -> tuple[Tensor, Tensor | None]:
    """Signal (B, C, h, w), (C, h, w) or (h, w) and mask (B, h, w) or (h, w) -> (B, C, h, w) and (B, h, w) bool or None.

    `guide` is the image that `as_image` returned. Values of invalid cells may be anything, NaN too.

    Raises:
        TypeError: not a dense floating tensor or array. ValueError: shape, batch, size, or not finite where valid.
    """
    if isinstance(signal, np.ndarray) and signal.dtype.kind not in "iuc":
        signal = _from_numpy("signal", signal, "floating point")
    elif isinstance(signal, np.ndarray):
        raise TypeError(f"signal must be floating point, got {signal.dtype}; {INTEGERS}")
    if not isinstance(signal, Tensor):
        raise TypeError(f"signal must be a tensor or a NumPy array, got {type(signal).__name__}")
    if signal.dtype not in FLOATS:
        raise TypeError(f"signal must be floating point, got {signal.dtype}; {INTEGERS}")
    if signal.device != guide.device:
        raise ValueError(f"signal and image must be on one device, got {signal.device} and {guide.device}")
    _check_dense("signal", signal)
    shape = _shape(signal)
    if signal.ndim in (2, 3):
        signal = signal[None, None] if signal.ndim == 2 else signal[None]
    if signal.ndim != 4 or signal.numel() == 0:
        raise ValueError(f"signal must be (B, C, h, w), (C, h, w) or (h, w) and not empty, got {shape}")
    if len(signal) != len(guide):
        raise ValueError(f"signal and image must have the same batch size, got {len(signal)} and {len(guide)}")
    check_grid(grid_of(signal), guide, "the grid of signal")
    _warn_of_channels_last(signal, guide, shape)
    if valid is None:
        if not bool(torch.isfinite(signal.detach()).all()):
            raise ValueError("signal must be finite, got NaN or inf; mark missing cells with valid=")
        return signal, None
    mask = _as_valid(valid, signal)
    if not bool((torch.isfinite(signal.detach()) | ~mask[:, None]).all()):
        raise ValueError("signal must be finite where valid is True, got NaN or inf")
    return signal.masked_fill(~mask[:, None], 0), mask


def _warn_of_channels_last(signal: Tensor, guide: Tensor, shape: str) -> None:
    """Warns where cells are long, as they are of channels taken for columns.

    `LONG` times as long as wide, or `UNEVEN` times where they would be square if the channels came last. (But a square
    grid may be that of an image that was squashed for a network.)
    """
    (height, width), (channels, rows, cols) = guide.shape[-2:], signal.shape[1:]
    down, across = height / rows, width / cols
    square_if_last = rows != cols and _elongation(height / channels, width / rows) < SQUARE
    if _elongation(down, across) > (UNEVEN if square_if_last else LONG):
        warnings.warn(
            f"signal of {shape} has cells of {down:.3g} x {across:.3g} pixels; it must be (C, h, w), channels first",
            stacklevel=3,
        )


def _elongation(down: float, across: float) -> float:
    return max(down, across) / min(down, across)


def _as_valid(valid: Any, signal: Tensor) -> Tensor:
    batch, _, rows, cols = signal.shape
    if isinstance(valid, np.ndarray):
        valid = _from_numpy("valid", valid, "a boolean tensor or array")
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        raise TypeError(f"valid must be a boolean tensor or array, got {getattr(valid, 'dtype', type(valid).__name__)}")
    given = _shape(valid)
    if valid.ndim == 4 and valid.shape[1] == 1:  # as `depth > 0` of a depth (B, 1, h, w)
        valid = valid[:, 0]
    if tuple(valid.shape) not in ((batch, rows, cols), (1, rows, cols), (rows, cols)):
        raise ValueError(
            f"valid must be on the grid of the signal, ({batch}, 1, {rows}, {cols}), ({batch}, {rows}, {cols}) or "
            f"({rows}, {cols}), got {given}; ua.degrade.area makes it of a mask of pixels"
        )
    valid = valid.to(signal.device).expand(batch, rows, cols)
    if not bool(valid.flatten(1).any(1).all()):
        raise ValueError("valid must mark at least one cell of every image, got a mask that is False everywhere")
    return valid


def check_grid(grid: Any, guide: Tensor, name: str = "grid") -> tuple[int, int]:
    """(h, w) as integers, at least 1 and at most the image's size; `name` is what errors call it.

    Raises:
        TypeError, ValueError: anything else.
    """
    if not isinstance(grid, (tuple, list, torch.Size)) or len(grid) != 2:
        raise TypeError(f"{name} must be a pair (h, w), got {grid!r}")
    if not all(isinstance(cells, Integral) and not isinstance(cells, bool) for cells in grid):
        raise TypeError(f"{name} must be two integers (h, w), got {tuple(grid)!r}")
    (rows, cols), (height, width) = map(int, grid), guide.shape[-2:]
    if not (1 <= rows <= height and 1 <= cols <= width):
        raise ValueError(
            f"{name} (h, w) must be between 1 x 1 and the image's {height} x {width}, got {rows} x {cols}; "
            "of tensors the channels come first, (B, C, H, W)"
        )
    return rows, cols


def grid_of(lr_map: Tensor) -> tuple[int, int]:
    """(h, w) of a tensor (..., h, w)."""
    return lr_map.shape[-2], lr_map.shape[-1]


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
