"""Impulses (salt and pepper): pixels at an end of the range that have nothing to do with those around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ua.prefilters.median import neighbourhood

END = 0.5 / 255  # from 0 or 1: what 8 bits round to it
DIFFERENCE = 0.2  # from the neighbours, for a pixel at an end to be suspicious
LEAST_SHARE = 0.01  # of suspicious pixels, for an image to have impulses
# Impulses fall anywhere: beside one, another is about as likely as elsewhere. Of lines, letters and highlights that end
# sharply, suspicious pixels come in rows: then it is this many times as likely.
MOST_CLUSTERED = 3.0


def extreme(image: Tensor) -> Tensor:
    """Pixels at an end of the range, bool in the shape of the image."""
    return (image <= END) | (image >= 1 - END)


def suspicious(image: Tensor, ends: Tensor) -> Tensor:
    """Those of `ends` that differ from the mean of their unaffected neighbours (of all, where none is)."""
    free = (~ends).to(image)
    count, total, everything = (_box(hr_map) for hr_map in (free, free * image, image))
    mean = torch.where(count > 0, total / count.clamp_min(1e-6), (everything - image / 9) * (9 / 8))
    return ends & ((image - mean).abs() > DIFFERENCE)


def present(suspects: Tensor) -> bool:
    """Whether the suspicious pixels of one image, (1, G, H, W), are many, and scattered as impulses are."""
    found = suspects.float()
    share = float(found.mean())
    if share < LEAST_SHARE:
        return False
    pairs = (found[..., 1:] * found[..., :-1]).mean() + (found[..., 1:, :] * found[..., :-1, :]).mean()
    return float(pairs) / 2 < MOST_CLUSTERED * share**2


def replaced(image: Tensor, suspects: Tensor, ends: Tensor) -> Tensor:
    """Suspicious pixels become the median of the unaffected ones around them, of 3 x 3 or, if there is none, 5 x 5.

    Where none is there either (a patch of white sky, say), the median of all.
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


def _box(image: Tensor) -> Tensor:
    """Mean of 3 x 3 pixels, the border repeated."""
    return F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
