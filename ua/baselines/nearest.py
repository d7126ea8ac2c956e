"""Each pixel takes the value of the LR cell that owns it (nearest centre)."""

from __future__ import annotations

from torch import Tensor

from ua.baselines import check, interpolate


def upsample(image: Tensor, signal: Tensor, valid: Tensor | None = None) -> Tensor:
    """Nearest-cell interpolation to the size of the guide; see `ua.baselines` for the arguments."""
    check(image, signal, valid)
    return interpolate(signal, (image.shape[-2], image.shape[-1]), "nearest", valid)
