"""The median of 3 x 3 pixels, each channel by itself: against impulses, at the price of thin lines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def apply(image: Tensor) -> Tensor:
    """(B, G, H, W) -> the same shape; the border pixel is repeated outwards."""
    return neighbourhood(image, 1).median(0).values


def neighbourhood(image: Tensor, reach: int) -> Tensor:
    """The (2 reach + 1)^2 shifted copies of an image: (B, G, H, W) -> (K, B, G, H, W), its borders repeated."""
    height, width = image.shape[-2:]
    padded = F.pad(image, (reach,) * 4, mode="replicate")
    shifts = range(2 * reach + 1)
    return torch.stack([padded[..., y : y + height, x : x + width] for y in shifts for x in shifts])
