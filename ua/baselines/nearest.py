"""Each pixel takes the value of the LR cell that owns it (nearest centre)."""

from __future__ import annotations

from torch import Tensor

from ua.baselines import check, interpolate


def upsample(image: Tensor, signal: Tensor, valid: Tensor | None = None) -> Tensor:
    """See `ua.baselines` for the arguments. The guide gives its size only."""
    check(image, signal, valid)
    return interpolate(signal, (image.shape[-2], image.shape[-1]), "nearest", valid)
