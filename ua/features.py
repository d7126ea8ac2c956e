"""A dense hand-made descriptor bank: features whose high-resolution truth is known.

A network's features exist on its own grid only, so nobody can say what the upsampled ones should have been. These can
be computed at every pixel, averaged to a low-resolution grid (`ua.degrade.area`) and compared after upsampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ua.filters import blur

ORIENTATIONS = 8  # bins over half a turn: an edge and its negative are one orientation
SCALES = (1.0, 3.0)  # standard deviation in pixels of the window that pools the statistics
SLOPE_SIGMA = 1.0  # of the Gaussian whose derivatives give orientation and strength

# (name, number of channels, mean, standard deviation). The last two were measured once over the photographs of
# ua.datasets.embedded (a test measures them again) and are constants: a descriptor says the same thing in every image.
# Channels that only differ by their direction share them.
GROUPS = (
    ("orientation_1", ORIENTATIONS, 0.0141, 0.0287),
    ("orientation_3", ORIENTATIONS, 0.0141, 0.021),
    ("lightness_1", 1, 0.389, 0.211),
    ("opponent_1", 2, 0.145, 0.191),
    ("lightness_3", 1, 0.389, 0.199),
    ("opponent_3", 2, 0.145, 0.188),
    ("contrast_1", 1, 0.031, 0.0429),
    ("opponent_contrast_1", 2, 0.0144, 0.0219),
    ("contrast_3", 1, 0.0594, 0.0639),
    ("opponent_contrast_3", 2, 0.0277, 0.0363),
    ("slope_3", 2, 0.0, 0.0388),
    ("laplacian_1", 1, 0.0, 0.0312),
    ("laplacian_3", 1, 0.0, 0.0464),
)
CHANNELS = sum(count for _, count, _, _ in GROUPS)


def descriptor_bank(image: Tensor) -> Tensor:
    """Thirty-two local descriptors of every pixel, standardised by constants.

    All windows are Gaussians; the border pixel is repeated outwards. With L the lightness and the two opponent colours
    red-green and yellow-blue:

    - `orientation`: histogram over 8 orientations of the gradient of L, each pixel voting by the square root of its
      gradient's length, shared between the two nearest bins, pooled at two scales (after Dalal and Triggs, "Histograms
      of oriented gradients", 2005);
    - `lightness`, `opponent`: local means; `contrast`, `opponent_contrast`: local standard deviations;
    - `slope`: scale-normalised first derivatives (x, y); `laplacian`: scale-normalised Laplacian (Lindeberg, "Feature
      detection with automatic scale selection", 1998).

    Deterministic; items of the batch never mix.

    Args:
        image: (B, 3, H, W) RGB, float in [0, 1], H and W at least 1.

    Returns:
        (B, 32, H, W) in the image's dtype; channels in the order of `GROUPS`, each of about mean 0 and standard
        deviation 1 on photographs.

    Raises:
        TypeError: no floating tensor. ValueError: another shape, empty, NaN, or outside [0, 1].
    """
    if not isinstance(image, Tensor) or not image.is_floating_point():
        got = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"image must be a floating-point torch.Tensor, got {got}")
    if image.ndim != 4 or image.shape[1] != 3 or image.numel() == 0:
        raise ValueError(f"image must be (B, 3, H, W) and not empty, got {tuple(image.shape)}")
    if not (image.min() >= 0 and image.max() <= 1):  # written so that NaN fails too
        raise ValueError(f"image must lie in [0, 1], got {image.min().item()} to {image.max().item()}")
    values = _raw(image)
    counts = torch.tensor([count for _, count, _, _ in GROUPS], device=image.device)
    mean, std = (
        torch.tensor(column, dtype=image.dtype, device=image.device).repeat_interleave(counts)[:, None, None]
        for column in ([mean for _, _, mean, _ in GROUPS], [std for _, _, _, std in GROUPS])
    )
    return (values - mean) / std


def _raw(image: Tensor) -> Tensor:
    """The bank before standardisation."""
    colours = _opponent(image)
    lightness = colours[:, :1]
    votes = _votes(lightness)
    small, large = SCALES
    means = {sigma: blur(colours, sigma) for sigma in SCALES}
    contrasts = {sigma: (blur(colours.square(), sigma) - means[sigma].square()).clamp(min=0).sqrt() for sigma in SCALES}
    return torch.cat(
        [
            blur(votes, small),
            blur(votes, large),
            means[small],
            means[large],
            contrasts[small],
            contrasts[large],
            large * blur(lightness, large, order_x=1),
            large * blur(lightness, large, order_y=1),
            *(sigma**2 * (blur(lightness, sigma, order_x=2) + blur(lightness, sigma, order_y=2)) for sigma in SCALES),
        ],
        dim=1,
    )


def _opponent(image: Tensor) -> Tensor:
    """Lightness, red-green, yellow-blue: (B, 3, H, W)."""
    red, green, blue = image.unbind(1)
    lightness = 0.299 * red + 0.587 * green + 0.114 * blue  # Rec. 601 luma
    return torch.stack([lightness, red - green, (red + green) / 2 - blue], dim=1)


def _votes(lightness: Tensor) -> Tensor:
    """Root of the gradient length, shared between the two nearest bins: (B, 1, H, W) -> (B, 8, H, W)."""
    dx = blur(lightness, SLOPE_SIGMA, order_x=1)
    dy = blur(lightness, SLOPE_SIGMA, order_y=1)
    position = torch.atan2(dy, dx) * (ORIENTATIONS / math.pi)  # bin k is centred on k / 8 of half a turn
    bins = torch.arange(ORIENTATIONS, dtype=lightness.dtype, device=lightness.device)[:, None, None]
    distance = (position - bins).remainder(ORIENTATIONS)
    distance = torch.minimum(distance, ORIENTATIONS - distance)
    return torch.hypot(dx, dy).sqrt() * (1 - distance).clamp(min=0)
