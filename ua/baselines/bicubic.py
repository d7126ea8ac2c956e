"""Bicubic interpolation between cell centres (Keys 1981, a = -0.75 as in PyTorch); it can overshoot."""

from __future__ import annotations

from torch import Tensor

from ua.baselines import check, interpolate


def upsample(image: Tensor, signal: Tensor, valid: Tensor | None = None) -> Tensor:
    """Bicubic interpolation to the size of the guide; see `ua.baselines` for the arguments."""
    check(image, signal, valid)
    return interpolate(signal, (image.shape[-2], image.shape[-1]), "bicubic", valid)
