"""Impulses (salt and pepper): pixels at an end of the range that have nothing to do with those around them.

Whether an image has any is told by the pixels that stand out most (`find`). Where it has, they are filled in from a
sparse estimate, coefficients of the cosine transform above a falling threshold (Guleryuz, "Nonlinear approximation
based image recovery using adaptive sparse reconstructions", 2006), and with every better estimate it is told anew which
pixels are impulses: those at an end that are far from it (`filled`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ua.prefilters import _noise
from ua.prefilters.median import neighbourhood

END = 0.5 / 255  # from 0 or 1: what 8 bits round to it
DIFFERENCE = 0.2  # of a pixel at an end from the mean of its neighbours at no end, to be suspicious
# The same from the mean of all neighbours: for an image to have impulses (a corner of a two-tone pattern has 5 / 8),
# and for a pixel to be one in an image that has.
FOR_PRESENCE, FOR_REPLACEMENT = 0.65, 0.35
LEAST_SHARE = 0.01  # of suspicious pixels, for an image to have impulses
# Impulses fall anywhere: beside one, another is about as likely as elsewhere. Of lines and letters suspicious pixels
# come in rows: beside one, another is likelier than this many times their share, and more.
MOST_CLUSTERED, SLACK = 2.0, 0.03
MOST_ALIKE = 0.25  # of the eight neighbours at the same end; corners of white and black patches have more
# Thresholds of the estimates, as standard deviations of noise that they would remove, and how far from an estimate a
# pixel is no more explained by it. Development images, 20 % of impulses: 28.5 dB by medians, 35.8 dB by 8 estimates,
# 36.9 dB by 16; distances of .03 to .05 are equal, .1 costs 1 dB.
FIRST, LAST, ESTIMATES = 0.15, 0.02, 8
UNEXPLAINED = 0.05


def find(image: Tensor) -> tuple[Tensor, Tensor] | None:
    """The pixels of one image, (1, G, H, W), that stand out, and all those at an end; None: no impulses."""
    if not bool(present(image)):
        return None
    ends = extreme(image)
    return suspicious(image, ends, FOR_REPLACEMENT), ends


def extreme(image: Tensor) -> Tensor:
    """Pixels at an end of the range, bool in the shape of the image."""
    return (image <= END) | (image >= 1 - END)


def suspicious(image: Tensor, ends: Tensor, from_all: float = FOR_PRESENCE) -> Tensor:
    """Those of `ends` that differ from the mean of their unaffected neighbours.

    Where fewer than half of the eight are unaffected, as in a white sky and along its border, all of them count, and
    the difference must be more than `from_all`.
    """
    free = (~ends).to(image)
    count, total, everything = (_sum(hr_map) for hr_map in (free, free * image, image))
    many = count > 3.5
    mean = torch.where(many, total / count.clamp_min(1), (everything - image) / 8)
    return ends & ((image - mean).abs() > torch.where(many, DIFFERENCE, from_all))


def present(image: Tensor) -> Tensor:
    """Whether the suspicious pixels of each image (B, G, H, W) are many, and scattered as impulses are: bool (B,)."""
    ends = extreme(image)
    enough = _mean(ends.to(image)) >= LEAST_SHARE
    if not bool(enough.any()):
        return enough
    suspects = suspicious(image, ends)
    found = suspects.to(image)
    share = _mean(found)
    pairs = _mean(found[..., 1:] * found[..., :-1]) + _mean(found[..., 1:, :] * found[..., :-1, :])
    alike = [_mean((_sum(end.to(image)) - 1) / 8 * (suspects & end)) for end in (image <= END, image >= 1 - END)]
    scattered = pairs / 2 < (MOST_CLUSTERED * share + SLACK) * share
    return enough & (share >= LEAST_SHARE) & scattered & (sum(alike) < MOST_ALIKE * share)


def _mean(images: Tensor) -> Tensor:
    """Of each image, (B,); 0 where there is nothing."""
    return images.flatten(1).mean(1).nan_to_num(0)


def filled(image: Tensor, suspects: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """One image without its impulses, and where they were, bool; what is filled in has no gradient.

    Args:
        image: (1, G, H, W) in [0, 1].
        suspects, ends: what `find` returned for it.
    """
    impulses = suspects
    with torch.no_grad():
        estimate = _by_medians(image, suspects, ends)
        for number in range(ESTIMATES):
            sigma = FIRST * (LAST / FIRST) ** (number / (ESTIMATES - 1))
            estimate = _noise.thresholded(torch.where(impulses, estimate, image), image.new_full((1,), sigma))
            if number:  # the first is too coarse to judge by
                impulses = _unexplained(image, estimate, ends)
    return torch.where(impulses, estimate, image), impulses


def _unexplained(image: Tensor, estimate: Tensor, ends: Tensor) -> Tensor:
    """Pixels at an end that are far from the estimate: of a pixel all of whose channels are at one end, all or none."""
    far = (image - estimate).abs() > UNEXPLAINED
    same = (image <= END).all(1, keepdim=True) | (image >= 1 - END).all(1, keepdim=True)
    return ends & (far | (same & far.any(1, keepdim=True)))


def _by_medians(image: Tensor, suspects: Tensor, ends: Tensor) -> Tensor:
    """Suspicious pixels become the median of the unaffected ones around them, of 3 x 3 or, if there is none, 5 x 5.

    Where none is there either (in a white sky), the median of all.
    """
    known = image.masked_fill(ends, torch.nan)
    out, left = image, suspects
    for source, reach in ((known, 1), (known, 2), (image, 2)):
        medians = neighbourhood(source, reach)[:, left].nanmedian(0).values
        out = out.masked_scatter(left, medians)
        left = out.isnan()
        if not left.any():
            break
    return out


def _sum(image: Tensor) -> Tensor:
    """Sum of 3 x 3 pixels, the border repeated."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    across = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
    return across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
