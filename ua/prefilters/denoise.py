"""White noise is estimated and removed, little or much of it: texture suffers on clean images, `auto` looks first."""

from __future__ import annotations

from torch import Tensor

from ua.prefilters import _noise

LEAST = 1e-4  # a level above 0, so that nothing is divided by it


def apply(image: Tensor) -> Tensor:
    """(B, G, H, W) in [0, 1] -> the same shape and range."""
    return _noise.remove(image, _noise.level(image.detach()).clamp_min(LEAST))
